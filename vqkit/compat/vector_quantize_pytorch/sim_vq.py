"""``SimVQ`` of vector-quantize-pytorch: the arguments, results and state dict of that class, over ``vqkit.Quantizer``."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vqkit.codebooks import SuppliedCodebook
from vqkit.compat.embedding import code_vectors
from vqkit.compat.vector_quantize_pytorch.arguments import check
from vqkit.quantizers import Quantizer


class SimVQ(nn.Module):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    codes = code_transform(frozen_codebook)
    loss = commitment_weight (mean (sg x - q)^2 + input_to_quantize_commit_loss_weight mean (x - sg q)^2)

    ``forward(x)`` -> quantized as ``x``, indices (*x without D) int64, loss (), in eval mode too. x: (B, *positions, D), or (B, D, *positions)
    with ``channel_first``. codebook_transform: maps (K, frozen_codebook_dim) to (K, D).  init_fn: maps the frozen vectors at the start.

    ``vqkit.Quantizer(dim, size, codebook=LinearCodebook(...))`` is the same and keeps the codes in eval mode.

    Where the original errs it is not followed:
    - A row with NaN or infinity has index -1 and output 0, and teaches nothing. A zero latent keeps its code under the rotation.
    - The nearest code is exact also far from the origin, codes are made in their own dtype under autocast; nothing holds N x K numbers.
    - ``indices_to_codes`` takes the rows of the whole transformed codebook, as ``forward`` does, and transforms it once; that counts where
      the transform looks at several rows, as a batch norm does. -1 gives 0.

    Source: Zhu et al. 2024 (arXiv 2411.02038), section 4; rotation: Fifty et al. 2024 (arXiv 2410.06424).
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] | None = None,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ):
        super().__init__()
        frozen_codebook_dim = dim if frozen_codebook_dim is None else frozen_codebook_dim
        for name, value in (("dim", dim), ("codebook_size", codebook_size), ("frozen_codebook_dim", frozen_codebook_dim)):
            check(value >= 1, f"{name}: expected at least 1, got {value}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.channel_first = channel_first
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight
        frozen = torch.randn(codebook_size, frozen_codebook_dim) / frozen_codebook_dim**0.5
        self.register_buffer("frozen_codebook", frozen if init_fn is None else init_fn(frozen))
        self.code_transform = nn.Linear(frozen_codebook_dim, dim, bias=False) if codebook_transform is None else codebook_transform
        self.quantizer = Quantizer(
            dim,
            codebook_size,
            codebook=SuppliedCodebook(codebook_size, dim),
            gradient="rotation" if rotation_trick else "straight_through",
            channel_first=channel_first,
        )

    @property
    def codebook(self) -> Tensor:
        """The codes, (K, D), with a gradient to the transform."""
        with torch.autocast(self.frozen_codebook.device.type, enabled=False):
            return self.code_transform(self.frozen_codebook)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The codes of indices (B, *positions), in the layout of ``x``, with a gradient to the transform."""
        codes = code_vectors(self.codebook, indices)
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = self.quantizer(x, codes=self.codebook)
        loss = result.losses["codebook"] + self.input_to_quantize_commit_loss_weight * result.losses["commitment"]
        return result.quantized, result.indices, self.commitment_weight * loss

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, channel_first={self.channel_first}"
