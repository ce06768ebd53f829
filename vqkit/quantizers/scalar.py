"""What quantizers share whose codes are the points of a fixed grid, so that nothing is searched and no codebook is stored."""

import torch
from torch import Tensor, nn

from vqkit.ops import code_counts
from vqkit.ops.statistics import check_range
from vqkit.quantizers.layout import feature_rows, project_rows
from vqkit.quantizers.quantized import Quantized

# Counts of more codes than this are not kept: K may be 2**36 where no codebook is stored.
MAX_COUNTED = 2**20


class ScalarQuantizer(nn.Module):
    """Cuts the features into ``num_codebooks`` pieces of ``codebook_dim`` numbers and rounds every number for itself.

    A subclass rounds in ``forward`` and ``_select`` and says in ``_points`` which point an index stands for.

    Args:
        codebook_dim: d, numbers in a code.  codebook_size: K, points of the grid.
        dim: D, size of the feature dimension of the input. Default: num_codebooks * d.
        num_codebooks: C; every piece has an index of its own, all on the same grid.
        projections: a linear layer in, D -> C d, and one out. Default: where D is not C d.
        projection_bias: whether these layers have a bias.
        orthogonal_rotation: a fixed random rotation before the rounding and its inverse after it, so that every feature takes part in
            every number (an idea of incoherence processing, Chee et al. 2023, arXiv 2307.13304).
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    Rounding runs in float32 or better, also under autocast. A masked row, or one that holds NaN or infinity, has output 0 and index -1
    and takes no part in losses, counts or gradients.
    """

    def __init__(
        self,
        codebook_dim: int,
        codebook_size: int,
        dim: int | None = None,
        *,
        num_codebooks: int = 1,
        projections: bool | None = None,
        projection_bias: bool = True,
        orthogonal_rotation: bool = False,
        channel_first: bool = False,
    ):
        super().__init__()
        for name, value in (("num_codebooks", num_codebooks), ("dim", dim)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if codebook_size >= 2**62:
            raise ValueError(f"codebook_size: expected less than 2**62 so that an index is an int64, got {codebook_size}")
        width = codebook_dim * num_codebooks
        self.dim = width if dim is None else dim
        self.codebook_dim = codebook_dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.channel_first = channel_first
        projected = self.dim != width if projections is None else projections
        if not projected and self.dim != width:
            raise ValueError(f"dim: expected {width} (num_codebooks * codebook_dim) with projections=False, got {dim}")
        self.project_in = nn.Linear(self.dim, width, bias=projection_bias) if projected else nn.Identity()
        self.project_out = nn.Linear(width, self.dim, bias=projection_bias) if projected else nn.Identity()
        self.register_buffer("rotation", nn.init.orthogonal_(torch.empty(codebook_dim, codebook_dim)) if orthogonal_rotation else None)
        # Follows ``.to(dtype)`` where nothing else does.
        self.register_buffer("_dtype_marker", torch.empty(0), persistent=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each piece."""
        return (self.codebook_size,) * self.num_codebooks

    @property
    def selections(self) -> tuple[int, ...]:
        """Number of indices that each piece contributes to a position: one."""
        return (1,) * self.num_codebooks

    @property
    def codes(self) -> Tensor:
        """All points of the grid, (K, d) float32, in the order of their indices; made when asked for."""
        return self._points(torch.arange(self.codebook_size, device=self._dtype_marker.device), torch.float32)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns."""
        latents, shape, valid = self._latents(x, mask)
        return self._shaped(self._select(latents), shape, valid)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, in the layout of ``x``; -1 gives a zero vector. No gradient.

        indices: (...), or (..., C) with several codebooks.  dtype: that of ``x``. Default: the dtype of the module.
        Raises ValueError for a shape or IndexError for an index that does not fit (on the CPU).
        """
        tail = (self.num_codebooks,) * (self.num_codebooks > 1)
        if tail and tuple(indices.shape[-1:]) != tail:
            raise ValueError(f"indices: expected a last dimension of {self.num_codebooks}, num_codebooks, got shape {tuple(indices.shape)}")
        check_range(indices, self.codebook_size, "codebook_size")
        if dtype is None:
            dtype = next((p.dtype for p in self.parameters()), self._dtype_marker.dtype)
        shape = indices.shape[: indices.ndim - len(tail)]
        columns = indices.reshape(-1, self.num_codebooks)
        points = self._points(columns.clamp(min=0), torch.promote_types(dtype, torch.float32))
        return self._restored(points, shape, columns[:, 0] >= 0, dtype)

    def _select(self, latents: Tensor) -> Tensor:
        """The indices of these latents: (N, C, d) -> (N, C) int64."""
        raise NotImplementedError

    def _points(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """The points that these indices stand for: (...) int64 -> (..., d)."""
        raise NotImplementedError

    def _latents(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, torch.Size, Tensor]:
        """Latents (N, C, d), zero where left out, the shape of x without D, and which rows count, (N,) bool."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        shape = rows.shape[:-1]
        rows, valid = project_rows(self.project_in, rows, valid)
        latents = rows.reshape(-1, self.num_codebooks, self.codebook_dim).to(torch.promote_types(rows.dtype, torch.float32))
        latents = self._clamped(latents)
        if self.rotation is not None:
            with torch.autocast(x.device.type, enabled=False):
                latents = latents @ self.rotation.to(latents.dtype)
        return latents, shape, valid.reshape(-1)

    def _clamped(self, latents: Tensor) -> Tensor:
        """What a subclass does with latents (N, C, d) before they are rotated."""
        return latents

    def _shaped(self, indices: Tensor, shape: torch.Size, valid: Tensor) -> Tensor:
        return indices.where(valid[:, None], -1).view((*shape, *(self.num_codebooks,) * (self.num_codebooks > 1)))

    def _restored(self, points: Tensor, shape: torch.Size, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """Points (N, C, d) back in the layout of x; rows that are left out are zero after the projection."""
        if self.rotation is not None:
            with torch.autocast(points.device.type, enabled=False):
                points = points @ self.rotation.to(points.dtype).T
        output = self.project_out(points.flatten(1).to(dtype)).where(valid[:, None], 0.0)
        output = output.view((*shape, self.dim))
        return output.movedim(-1, 1) if self.channel_first else output

    def _quantized(self, points: Tensor, indices: Tensor, shape: torch.Size, valid: Tensor, dtype: torch.dtype, **losses) -> Quantized:
        """The result of a forward pass from its points (N, C, d) and their indices (N, C); ``losses`` as in ``Quantized``."""
        shaped = self._shaped(indices, shape, valid)
        counts = code_counts(shaped, self.codebook_size) if self.codebook_size <= MAX_COUNTED else None
        return Quantized(self._restored(points, shape, valid, dtype), shaped, counts=counts, **losses)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_dim={self.codebook_dim}, codebook_size={self.codebook_size}, "
            f"num_codebooks={self.num_codebooks}, channel_first={self.channel_first}"
        )
