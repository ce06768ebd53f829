"""Random-projection quantization (BEST-RQ): frozen random labels for self-supervised learning."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from vqkit.codebooks.statistics import Float32Statistics
from vqkit.ops import nearest_code
from vqkit.ops.statistics import check_range
from vqkit.quantizers.layout import feature_rows


class RandomProjectionQuantizer(Float32Statistics):
    """Labels every vector with the code nearest to its random projection by cosine; nothing is learned.

    index = argmin over k of |c_k / |c_k| - A x / |A x||, with A and the codes drawn once, for each of ``num_codebooks``.

    Args:
        dim: D, size of the feature dimension of the input.
        codebook_size: K.
        codebook_dim: d, length of a projection and of a code.
        num_codebooks: C independent projections, each with its own codes; each gives an index.
        norm: each vector is brought to mean 0 and variance 1 first, without which the labels of unscaled data collapse.
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    projections (C, D, d): Xavier normal; codes (C, K, d): random unit vectors. Both are buffers and stay in float32, and projections run in
    float32 or better also under autocast, so that a label does not depend on the dtype of a model. A masked row, or one that holds
    NaN or infinity, has index -1. No gradient.
    Raises ValueError for arguments that do not fit.

    Source: Chiu et al. 2022 (arXiv 2202.01855), section 3.1; several codebooks: Zhang et al. 2023 (arXiv 2303.01037), section 2.3.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int = 16,
        *,
        num_codebooks: int = 1,
        norm: bool = True,
        channel_first: bool = False,
    ):
        super().__init__()
        sizes = {"dim": dim, "codebook_size": codebook_size, "codebook_dim": codebook_dim, "num_codebooks": num_codebooks}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.num_codebooks = num_codebooks
        self.norm = norm
        self.channel_first = channel_first
        deviation = (2 / (dim + codebook_dim)) ** 0.5
        self.register_buffer("projections", torch.randn(num_codebooks, dim, codebook_dim) * deviation)
        self.register_buffer("codes", normalize(torch.randn(num_codebooks, codebook_size, codebook_dim), dim=-1))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_codebooks

    @property
    def selections(self) -> tuple[int, ...]:
        return (1,) * self.num_codebooks

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The labels of ``x``, int64, of shape (*x without D [, C]); there is no output or loss besides.

        x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype.  mask: bool, shape of ``x`` without D; False leaves a
        row out.
        Raises ValueError for an ``x`` or ``mask`` that does not fit.
        """
        return self.encode(x, mask)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As ``forward``."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        projected = self._projected(rows, valid)
        pairs = zip(projected.unbind(-2), self.codes.to(projected.dtype))
        indices = torch.stack([nearest_code(latents, codes, metric="cosine") for latents, codes in pairs], -1).where(valid[..., None], -1)
        return indices if self.num_codebooks > 1 else indices.squeeze(-1)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The codes of these labels side by side, (..., C d), or (B, C d, *spatial) with channel_first; -1 gives zeros.

        indices: as ``encode`` returns them.  dtype: of the result. Default: float32.
        Raises ValueError for a shape or IndexError for an index that does not fit (on the CPU).
        """
        columns = indices if self.num_codebooks > 1 else indices[..., None]
        if columns.shape[-1:] != (self.num_codebooks,):
            raise ValueError(f"indices: expected a last dimension of {self.num_codebooks}, num_codebooks, got shape {tuple(indices.shape)}")
        check_range(indices, self.codebook_size, "codebook_size")
        chosen = self.codes[torch.arange(self.num_codebooks, device=indices.device), columns.clamp(min=0)]
        joined = chosen.where(columns[..., None] >= 0, 0.0).flatten(-2).to(self.codes.dtype if dtype is None else dtype)
        return joined.movedim(-1, 1) if self.channel_first else joined

    @torch.no_grad()
    def project(self, x: Tensor) -> Tensor:
        """What is compared with the codes: (*x without D, C, d), of unit length, float32 or better."""
        return self._projected(*feature_rows(x, None, self.dim, self.channel_first))

    def _projected(self, rows: Tensor, valid: Tensor) -> Tensor:
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).where(valid[..., None], 0.0)
        with torch.autocast(rows.device.type, enabled=False):
            rows = layer_norm(rows, (self.dim,)) if self.norm else rows
            return normalize(torch.einsum("...d,cde->...ce", rows, self.projections.to(rows.dtype)), dim=-1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, codebook_dim={self.codebook_dim}, "
            f"num_codebooks={self.num_codebooks}, channel_first={self.channel_first}"
        )
