"""Finite scalar quantization (FSQ): every number is rounded to one of a few levels."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.scalar import ScalarQuantizer


class FiniteScalarQuantizer(ScalarQuantizer):
    """Rounds number i of a code to ``levels[i]`` evenly spaced values between -1 and 1; nothing is learned but the projections.

    b(z) = (L - 1)(1 + eps)/2 tanh(z + shift) - offset;  code = round(b) / floor(L / 2), with offset 1/2 for even L, else 0, shift =
    atanh of offset by the factor before tanh, so that b(0) = 0, and eps = 1e-3.
    preserve_symmetry: code = 2 / (L - 1) floor((L - 1)(tanh z + 1)/2 + 1/2) - 1, symmetric about 0 for even L as well.

    The gradient of round and floor is the identity. index = sum_i level_i prod_{j<i} L_j: the first number changes fastest.

    Args:
        levels: L, number of values of each number of a code; K is their product.
        dim: as in ``ScalarQuantizer``, as are the other options.
        bound: "tanh", or "clamp": clamp(z, -1, 1) in its place (and no atanh), for inputs bounded before.
        preserve_symmetry: see the formula; needed for L = 2.
        noise_dropout: in training, the share of numbers that are not rounded but get uniform noise of one step's width. The
            output is then not that of the indices.

    The loss is 0. counts, usage and perplexity are of all K codes where K <= 2**20, else counts is None.
    Raises ValueError for arguments that do not fit.

    Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3 and appendix A; symmetry and noise: Parker et al. 2024 (arXiv
    2411.19842), section 2.
    """

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        *,
        bound: Literal["tanh", "clamp"] = "tanh",
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        **scalar,
    ):
        levels = tuple(levels)
        least = 2 if preserve_symmetry else 3
        if not levels or min(levels) < least:
            raise ValueError(
                f"levels: expected at least one, each at least {least} with preserve_symmetry={preserve_symmetry}, got {list(levels)}"
            )
        if bound not in ("tanh", "clamp"):
            raise ValueError(f"bound: expected 'tanh' or 'clamp', got {bound!r}")
        if not 0 <= noise_dropout <= 1:
            raise ValueError(f"noise_dropout: expected 0 <= noise_dropout <= 1, got {noise_dropout}")
        super().__init__(len(levels), math.prod(levels), dim, **scalar)
        self.bound = bound
        self.preserve_symmetry = preserve_symmetry
        self.noise_dropout = noise_dropout
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor([math.prod(levels[:place]) for place in range(len(levels))]), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Round ``x``.

        x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype.  mask: bool, shape of ``x`` without D; False leaves a
        row out.
        Returns ``Quantized``: quantized as ``x`` (without noise equal to ``decode(indices)``), indices (*x without D [, C]), loss 0.
        Raises ValueError for an ``x`` or ``mask`` that does not fit.
        """
        latents, shape, valid = self._latents(x, mask)
        smooth, level = self._levels_of(latents)
        # The sum of the level and of an exact zero that carries the gradient: the output has the bits of decode.
        points = self._values(level + (smooth - smooth.detach()))
        if self.training and self.noise_dropout:
            points = self.with_noise(points, self._values(smooth))
        return self._quantized(points, self._index(level), shape, valid, x.dtype, loss=points.new_zeros(()), losses={})

    def with_noise(self, rounded: Tensor, smooth: Tensor) -> Tensor:
        """In training, for a random share of the numbers: the bounded number and uniform noise in place of the rounded one.

        rounded, smooth: (N, C, d), the same numbers with and without rounding.
        """
        lowest = torch.zeros_like(self.levels, dtype=smooth.dtype)
        step = self._values(lowest + 1) - self._values(lowest)
        noisy = smooth + (torch.rand_like(smooth) - 0.5) * step
        return noisy.where(torch.rand_like(smooth) < self.noise_dropout, rounded)

    def level_indices(self, indices: Tensor) -> Tensor:
        """The level of each number of these codes: (...) int64 -> (..., d), each in 0 .. levels[i] - 1."""
        return (indices[..., None] // self.basis) % self.levels

    def _levels_of(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Where the bounded latents lie on the scale of the levels, with a gradient, and the level that each is rounded to."""
        levels = self.levels.to(latents.dtype)
        bounded, inverse = (torch.tanh, torch.atanh) if self.bound == "tanh" else (lambda z: z.clamp(-1, 1), lambda z: z)
        if self.preserve_symmetry:
            smooth = (levels - 1) * (bounded(latents) + 1) / 2
            level = (smooth.detach() + 0.5).floor()
        else:
            half = (levels - 1) * (1 + 1e-3) / 2
            offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(latents.dtype)
            centred = bounded(latents + inverse(offset / half)) * half - offset
            middle = (self.levels // 2).to(latents.dtype)
            smooth = centred + middle
            level = centred.detach().round() + middle
        # With more than 1000 levels eps alone is half a step.
        return smooth, torch.minimum(level.clamp(min=0), levels - 1)

    def _values(self, level: Tensor) -> Tensor:
        """The numbers between -1 and 1 that these levels, (..., d) floating point, stand for."""
        if self.preserve_symmetry:
            return level * (2 / (self.levels.to(level.dtype) - 1)) - 1
        middle = (self.levels // 2).to(level.dtype)
        return (level - middle) / middle

    def _index(self, level: Tensor) -> Tensor:
        return (level.long() * self.basis).sum(-1)

    def _select(self, latents: Tensor) -> Tensor:
        return self._index(self._levels_of(latents)[1])

    def _points(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        return self._values(self.level_indices(indices).to(dtype))
