"""``FSQ`` of vector-quantize-pytorch: the arguments, results and state dict of that class, over ``FiniteScalarQuantizer``."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.compat.state import ForeignState, StateKey
from vqkit.compat.vector_quantize_pytorch.arguments import check, expect
from vqkit.quantizers import FiniteScalarQuantizer
from vqkit.quantizers.layout import feature_rows, project_rows

_FULL_PRECISION = frozenset((torch.float32, torch.float64))


class FSQ(ForeignState):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    ``forward(z)`` -> quantized as ``z``, indices (*z without D[, C]) int32, None without ``return_indices``. z: (B, N, D), or (B, D, *spatial)
    with ``channel_first`` and for 4 dimensions and more. ``scale`` has no effect, there too.

    Where the original errs it is not followed:
    - ``noise_dropout`` is the share of the numbers that get noise; there it is one half whatever is asked for.
    - ``codes_to_indices`` is the inverse of ``indices_to_codes`` also under ``orthogonal_rotation``, so it takes rotated codes. It rounds
      number by number, so that indices above 2**24 are exact.
    - A row with NaN or infinity has index -1 and output 0; ``indices_to_codes`` gives 0 for -1, in the dtype of the module.
    - With more than 1000 levels none beyond the last is returned.

    Not supported: rounding in half precision, which ``force_quantization_f32=False`` or another ``allowed_dtypes`` than float32 and
    float64 asks for, and another ``eps`` of ``bound``: they raise NotImplementedError. Raises ValueError for arguments that do not fit,
    which are also a level of 2 without ``preserve_symmetry``, and 2**31 codes or more with ``return_indices``.

    Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3 and appendix A.
    """

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ):
        super().__init__()
        levels = tuple(levels)
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        expect(force_quantization_f32, "force_quantization_f32=False: rounding always runs in float32 or better")
        expect(set(allowed_dtypes) == _FULL_PRECISION, f"allowed_dtypes: expected float32 and float64, got {tuple(allowed_dtypes)}")
        check(num_codebooks == 1 or keep, f"keep_num_codebooks_dim: expected True with num_codebooks={num_codebooks}, got False")
        check(not noise_dropout or preserve_symmetry, f"noise_dropout: expected 0 without preserve_symmetry, got {noise_dropout}")
        small = not return_indices or math.prod(levels) < 2**31
        check(small, f"levels: expected less than 2**31 codes so that an index is an int32, got {list(levels)}")
        width = len(levels) * num_codebooks
        self.dim = width if dim is None else dim
        self.has_projections = self.dim != width
        self.project_in = nn.Linear(self.dim, width, bias=projection_has_bias) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(width, self.dim, bias=projection_has_bias) if self.has_projections else nn.Identity()
        self.levels = levels
        self.codebook_dim = len(levels)
        self.num_codebooks = num_codebooks
        self.effective_codebook_dim = width
        self.codebook_size = math.prod(levels)
        self.keep_num_codebooks_dim = keep
        self.scale = scale
        self.allowed_dtypes = allowed_dtypes
        self.channel_first = channel_first
        self.return_indices = return_indices
        self.force_quantization_f32 = force_quantization_f32
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.bound_hard_clamp = bound_hard_clamp
        self.orthogonal_rotation = orthogonal_rotation
        self.quantizer = _Rounding(
            levels,
            num_codebooks=num_codebooks,
            bound="clamp" if bound_hard_clamp else "tanh",
            preserve_symmetry=preserve_symmetry,
            noise_dropout=noise_dropout,
            orthogonal_rotation=orthogonal_rotation,
        )

    def state_keys(self) -> list[StateKey]:
        return [StateKey("quantizer.rotation", "orthogonal_rot")]

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes, (K, d) float32, before a rotation; made when asked for."""
        return self.quantizer.codes

    @property
    def orthogonal_rot(self) -> Tensor | None:
        return self.quantizer.rotation

    def bound(self, z: Tensor, eps: float = 1e-3, hard_clamp: bool = False) -> Tensor:
        """(..., d) bounded by tanh, or clamped, and rounded to the levels, between -1 and 1, with the gradient of the bounded numbers."""
        expect(eps == 1e-3, f"eps: expected 1e-3, got {eps}")
        return self._rounded(z, hard_clamp, preserve_symmetry=False)

    def symmetry_preserving_bound(self, z: Tensor, hard_clamp: bool = False) -> Tensor:
        """As ``bound``, to levels that are symmetric about 0."""
        return self._rounded(z, hard_clamp, preserve_symmetry=True)

    def quantize(self, z: Tensor) -> Tensor:
        """Numbers (..., d), behind ``project_in`` and the rotation, as ``forward`` rounds them."""
        return self.quantizer.round(z)

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """The level of each number of these codes: (...) -> (..., d), each in 0 .. levels[i] - 1."""
        return self.quantizer.level_indices(indices)

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """The indices (...) int32 of codes (..., d), as ``indices_to_codes`` returns them before ``project_out``."""
        check(zhat.shape[-1] == self.codebook_dim, f"zhat: expected (..., {self.codebook_dim}), got {tuple(zhat.shape)}")
        return self.quantizer.index(zhat).to(torch.int32)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The vectors that ``forward`` returned with these indices, with the gradient of ``project_out``."""
        columns = indices.squeeze(-1) if self.keep_num_codebooks_dim and self.num_codebooks == 1 else indices
        dtype = self.project_out.weight.dtype if self.has_projections else None
        output = self.project_out(self.quantizer.decode(columns.long(), dtype))
        missing = (indices[..., 0] if self.keep_num_codebooks_dim else indices) < 0
        output = output.masked_fill(missing[..., None], 0.0)
        return output.movedim(-1, 1) if self._is_channel_first(output.ndim) else output

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        first = self._is_channel_first(z.ndim)
        rows, valid = feature_rows(z, None, self.dim, first)
        rows, valid = project_rows(self.project_in, rows, valid)
        codes, indices, _ = self.quantizer(rows, valid)
        output = self.project_out(codes).where(valid[..., None], 0.0)
        output = output.movedim(-1, 1) if first else output
        if not self.return_indices:
            return output, None
        indices = indices[..., None] if self.keep_num_codebooks_dim and self.num_codebooks == 1 else indices
        return output, indices.to(torch.int32)

    def _is_channel_first(self, ndim: int) -> bool:
        return self.channel_first or ndim >= 4

    def _rounded(self, z: Tensor, hard_clamp: bool, preserve_symmetry: bool) -> Tensor:
        rounding = _Rounding(self.levels, bound="clamp" if hard_clamp else "tanh", preserve_symmetry=preserve_symmetry)
        return rounding.to(z.device).round(z)

    def extra_repr(self) -> str:
        return f"levels={list(self.levels)}, dim={self.dim}, num_codebooks={self.num_codebooks}, channel_first={self.channel_first}"


class _Rounding(FiniteScalarQuantizer):
    """With the noise of that library, and the steps of a forward pass one by one."""

    def with_noise(self, rounded: Tensor, smooth: Tensor) -> Tensor:
        # Uniform noise of width 1 on the rounded numbers, which do not pass -1 and 1.
        chosen = torch.empty_like(rounded).bernoulli_(self.noise_dropout).bool()
        return (rounded + torch.rand_like(rounded) - 0.5).where(chosen, rounded).clamp(-1, 1)

    def round(self, z: Tensor) -> Tensor:
        """Numbers (..., d) as ``forward`` rounds them, without rotation and noise."""
        smooth, level = self._levels_of(z.to(torch.promote_types(z.dtype, torch.float32)))
        return self._values(level + (smooth - smooth.detach())).to(z.dtype)

    @torch.no_grad()
    def index(self, points: Tensor) -> Tensor:
        """The indices (...) int64 of the nearest points of the grid: (..., d)."""
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        if self.rotation is not None:
            points = points @ self.rotation.to(points.dtype)
        lowest = self._values(torch.zeros_like(self.levels, dtype=points.dtype))
        step = self._values(torch.ones_like(lowest)) - lowest
        level = ((points - lowest) / step).round()
        return self._index(torch.minimum(level.clamp(min=0), self.levels - 1))
