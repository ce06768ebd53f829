"""Terms of vector-quantize-pytorch's losses that look at all distances, as regularizers of a ``Quantizer``: a block of rows at a time."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

# Distances of one block.
_BLOCK = 1 << 22


def _closeness(latents: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """-|x - c|, or x . c: (N, D), (K, D) -> (N, K)."""
    if cosine:
        return latents @ codes.T
    # By differences: an expansion into squares loses what is close.
    return -torch.cdist(latents, codes, compute_mode="donot_use_mm_for_euclid_dist")


def _sum_over_blocks(function, codes: Tensor, rows: int, *tensors: Tensor) -> Tensor:
    """The sum of function(codes, *blocks) over blocks of at least ``rows`` rows, which the backward pass computes again."""
    step = max(1, _BLOCK // (len(codes) * rows)) * rows
    total = codes.new_zeros(())
    with torch.autocast(codes.device.type, enabled=False):
        for block in zip(*(tensor.split(step) for tensor in tensors)):
            total = total + checkpoint(function, codes, *block, use_reentrant=False, preserve_rng_state=False)
    return total


@dataclass(frozen=True)
class CrossEntropy:
    """mean over the rows of -log softmax over k of -|x - c_k| (l2) or x . c_k (cosine), at a target.

    targets: (N,) int64, -1 for rows that do not count. Default: the indices that were chosen.
    Gradient to latents and codes.

    Source: Shen et al. 2023 (arXiv 2304.09116), section 3.1, as vector-quantize-pytorch has it.
    """

    cosine: bool
    targets: Tensor | None = None
    weight: float = 0.0
    name: ClassVar[str] = "cross_entropy"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        targets = indices[:, 0] if self.targets is None else self.targets
        targets = targets.where(valid, -1)

        def block(codes, rows, places):
            return torch.nn.functional.cross_entropy(_closeness(rows, codes, self.cosine), places, ignore_index=-1, reduction="sum")

        return _sum_over_blocks(block, codes, 1, latents, targets) / (targets >= 0).sum().clamp(min=1)


@dataclass(frozen=True)
class PositionDiversity:
    """mean over the positions of sum_k p_k log p_k, p = mean over the samples of softmax over k of temperature * closeness.

    samples: number of rows of a position; those of one position follow one another.
    The closeness is that of ``CrossEntropy``; probabilities below 1e-5 count as this much in the logarithm. Rows that are not
    valid do not count. Gradient to latents and codes.

    As vector-quantize-pytorch has it (``codebook_diversity_loss_weight``); ``regularizers.Diversity`` has the mean over all rows.
    """

    temperature: float
    cosine: bool
    samples: int
    weight: float = 0.0
    name: ClassVar[str] = "codebook_diversity"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        counted = valid.view(-1, self.samples).sum(-1)

        def block(codes, rows, valid):
            share = (_closeness(rows, codes, self.cosine) * self.temperature).softmax(-1).where(valid[:, None], 0.0)
            share = share.unflatten(0, (-1, self.samples)).sum(1) / valid.view(-1, self.samples, 1).sum(1).clamp(min=1)
            return (share * share.clamp(min=1e-5).log()).sum()

        return _sum_over_blocks(block, codes, self.samples, latents, valid) / (counted > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class LatentDiversity:
    """``PositionDiversity`` of latents in the order (B, *positions, H)."""

    temperature: float
    cosine: bool
    shape: torch.Size
    weight: float = 0.0
    name = PositionDiversity.name

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        batch, *positions, heads, dim = self.shape
        term = PositionDiversity(self.temperature, self.cosine, batch * heads)
        rows = latents.view(batch, -1, heads, dim).transpose(0, 1).reshape(-1, dim)
        return term(rows, codes, indices, valid.view(batch, -1, heads).transpose(0, 1).reshape(-1))


def orthogonality(codes: Tensor, counted: Tensor) -> Tensor:
    """mean of (C C^T - 1)^2 over the K x K inner products of the directions of the codes (K, D) that count, (K,) bool.

    A zero code has no direction, and counts as one that is not of unit length. O(K D + D^2) memory.

    Source: Shin et al. 2021 (arXiv 2112.00384), equation 2.
    """
    number = counted.sum()
    directions = normalize(codes, dim=-1, eps=1e-6).where(counted[:, None], 0.0)
    error = (directions.T @ directions).square().sum() - 2 * directions.square().sum() + number
    return error / number.clamp(min=1).square()


def orthogonal_loss_fn(codes: Tensor) -> Tensor:
    """``orthogonality`` of all codes (H, K, D), the mean over H."""
    return sum(orthogonality(table, table.new_ones(len(table), dtype=torch.bool)) for table in codes) / len(codes)
