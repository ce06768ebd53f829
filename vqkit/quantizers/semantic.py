"""Quantization that sees, in training, what class every position belongs to (SGC)."""

import torch
from torch import Tensor

from vqkit.codebooks.semantic import SemanticCodebook
from vqkit.ops import code_counts, straight_through
from vqkit.ops.straight_through import Gradient
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer


class SemanticQuantizer(Quantizer):
    """A ``Quantizer`` over a ``SemanticCodebook`` that assigns by class too where it is told the classes, which is in training only.

    Without classes, and in eval mode, every latent gets its nearest code: nothing has to be known of a picture to encode it.

    Args:
        codebook: holds the classes and their weight.
        commitment_weight, gradient, channel_first: as in ``Quantizer``.

    Source: see ``SemanticCodebook``.
    """

    def __init__(
        self,
        codebook: SemanticCodebook,
        *,
        commitment_weight: float = 0.25,
        gradient: Gradient = "straight_through",
        channel_first: bool = False,
    ):
        if not isinstance(codebook, SemanticCodebook):
            raise TypeError(f"codebook: expected a SemanticCodebook, got {type(codebook).__name__}")
        options = {"commitment_weight": commitment_weight, "gradient": gradient, "channel_first": channel_first}
        super().__init__(codebook.dim, codebook.size, codebook=codebook, **options)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        classes: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        learn: bool | None = None,
    ) -> Quantized:
        """Quantize ``x``; arguments and result as in ``Quantizer.forward``, and

        classes: int64 in -1..C-1, shape of ``x`` without D; -1 where nothing is known. Looked at in training mode only.

        Raises ValueError also for classes that do not fit or stand beside indices, IndexError for a class out of range (on the CPU).
        """
        if classes is None:
            return super().forward(x, mask, indices=indices, learn=learn)
        if indices is not None:
            raise ValueError("indices: expected None beside classes")
        self._check_classes(classes, x)
        if not self.training:
            return super().forward(x, mask, learn=learn)
        latents, shape, valid = self._latents(x, mask)
        known, learning = classes.reshape(-1), learn is not False
        if learning:
            self.codebook.prepare(latents.detach(), valid)
        codes = self.codes.to(latents.dtype)
        indices = self.codebook.assign(latents.detach(), known).where(valid, -1)
        quantized, commitment, _ = straight_through(latents, codes, indices, gradient=self.gradient)
        counts = code_counts(indices, self.codebook_size)
        self.monitor.observe(latents.detach(), quantized.detach(), counts, valid)
        if learning:
            self.codebook.observe(self.codebook.labelled(latents.detach(), known), indices)
        output = self._restored(quantized, shape, valid, x.dtype)
        return Quantized(output, indices.view(shape), self.commitment_weight * commitment, {"commitment": commitment}, counts)

    def _check_classes(self, classes: Tensor, x: Tensor) -> None:
        shape = (x.shape[0], *x.shape[2:]) if self.channel_first else x.shape[:-1]
        if classes.dtype != torch.int64 or classes.shape != shape:
            raise ValueError(f"classes: expected int64 of shape {tuple(shape)}, got {classes.dtype} {tuple(classes.shape)}")
        # Where looking costs no synchronisation and no graph break.
        if classes.device.type != "cpu" or not classes.numel() or torch.compiler.is_compiling():
            return
        low, high = (int(bound) for bound in classes.aminmax())
        if not -1 <= low <= high < self.codebook.classes:
            raise IndexError(f"classes: expected -1 <= class < {self.codebook.classes}, got {low}..{high}")
