"""``RandomProjectionQuantizer`` of vector-quantize-pytorch: the arguments, results and state of that class, over ``VectorQuantize``."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from vqkit.codebooks.statistics import Float32Statistics
from vqkit.compat.vector_quantize_pytorch.arguments import check, expect
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from vqkit.quantizers.layout import feature_rows


class RandomProjectionQuantizer(Float32Statistics):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    ``forward(x)`` -> labels (*x without D[, C]) int64; ``forward(x, indices)`` -> the cross-entropy (), as ``VectorQuantize`` has it, with its
    gradient to ``x``. x: (*positions, D). ``kwargs`` are arguments of ``VectorQuantize``, whose docstring holds: what is not supported there
    raises NotImplementedError here, as does ``kmeans_init``. Nothing is learned. With several codebooks the projections of all of them pass
    ``vq.project_in``, a random linear layer, to as many pieces of C ``codebook_dim`` numbers each, which are what is compared.

    Where the original errs it is not followed: the projections are kept and multiplied in float32 whatever the dtype of the model, so that
    labels do not depend on it; a row with NaN or infinity has label -1.

    ``vqkit.quantizers.RandomProjectionQuantizer`` compares the projections themselves.

    Source: Chiu et al. 2022 (arXiv 2202.01855), section 3.1.
    """

    def __init__(self, *, dim: int, codebook_size: int, codebook_dim: int, num_codebooks: int = 1, norm: bool = True, **kwargs):
        super().__init__()
        for name, value in (("dim", dim), ("codebook_dim", codebook_dim), ("num_codebooks", num_codebooks)):
            check(value >= 1, f"{name}: expected at least 1, got {value}")
        expect(not kwargs.get("kmeans_init"), "kmeans_init: the codes stay as they are drawn")
        self.dim = dim
        self.num_codebooks = num_codebooks
        self.register_buffer("rand_projs", nn.init.xavier_normal_(torch.empty(num_codebooks, dim, codebook_dim)))
        self.norm = norm
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **kwargs,
        )
        self.vq.eval()

    def train(self, mode: bool = True):
        super().train(mode)
        self.vq.eval()
        return self

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        with torch.no_grad() if indices is None else nullcontext():
            result = self.vq(self._projected(x), indices=indices)
        return result[1]

    def _projected(self, x: Tensor) -> Tensor:
        """(*positions, D) -> (*positions, C d), NaN where a row is not finite."""
        rows, valid = feature_rows(x, None, self.dim, channel_first=False)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).where(valid[..., None], 0.0)
        with torch.autocast(rows.device.type, enabled=False):
            rows = layer_norm(rows, (self.dim,)) if self.norm else rows
            projected = torch.einsum("...d,cde->...ce", rows, self.rand_projs.to(rows.dtype)).flatten(-2)
        projected = projected.where(valid[..., None], torch.nan)
        return projected.to(self.vq.project_in.weight.dtype) if self.num_codebooks > 1 else projected
