"""The kernel distance between two sets of features: unbiased, so comparable where pictures are few."""

from __future__ import annotations

import torch
from torch import Tensor

# Values of a kernel matrix at a time: few enough to stay in a processor's cache.
_BLOCK = 1 << 17


def kernel_distance(real: Tensor, generated: Tensor, *, subsets: int = 100, subset_size: int | None = 1000,
                    generator: torch.Generator | None = None) -> tuple[float, float]:
    """The squared maximum mean discrepancy with a cubic kernel, and its standard deviation over subsets; over Inception's features, KID.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),   k(x, y) = (x . y / D + 1)^3

    Unbiased: near 0, on either side, for sets of one distribution.

    Args:
        real, generated: (N, D) and (M, D); computed in float64.
        subsets, subset_size: the mean of so many draws of so many features from each, without repetition within a draw, as published.
            subset_size=None takes all features once, with a deviation of 0.
        generator: of the draws, a CPU one; None is one seeded with 0, so that two calls agree.

    Memory is O(N + M) and a block of the kernel. Raises ValueError for shapes that do not fit, values that are not finite, or a subset
    larger than a set or below 2.
    Source: Bińkowski et al., Demystifying MMD GANs, arXiv 1801.01401, section 4.
    """
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or features.shape[1] != real.shape[-1]:
            raise ValueError(f"{name}: expected (N, {real.shape[-1]}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError(f"{name}: expected finite values")
    smaller = min(len(real), len(generated))
    size = smaller if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        raise ValueError(f"subset_size: expected 2 .. {smaller}, the smaller of {len(real)} real and {len(generated)} generated features, "
                         f"got {size}")
    if subsets < 1:
        raise ValueError(f"subsets: expected at least 1, got {subsets}")
    real, generated = real.detach().double(), generated.detach().to(real.device, torch.float64)
    if subset_size is None:
        return _discrepancy(real, generated), 0.0
    generator = generator or torch.Generator().manual_seed(0)
    found = []
    for _ in range(subsets):
        drawn = [features[torch.randperm(len(features), generator=generator)[:size].to(features.device)] for features in (real, generated)]
        found.append(_discrepancy(*drawn))
    values = torch.tensor(found, dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()


def _discrepancy(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    own, others = _kernel_sum(x, x) - _diagonal_sum(x), _kernel_sum(y, y) - _diagonal_sum(y)
    return (own / (n * (n - 1)) + others / (m * (m - 1)) - 2 * _kernel_sum(x, y) / (n * m)).item()


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return sum(_cubes(rows @ y.T, x.shape[1]).sum() for rows in x.split(max(1, _BLOCK // len(y))))


def _diagonal_sum(x: Tensor) -> Tensor:
    return _cubes(x.square().sum(1), x.shape[1]).sum()


def _cubes(products: Tensor, dim: int) -> Tensor:
    """k of inner products, which are overwritten; by products, since a power takes many times as long."""
    base = products.div_(dim).add_(1)
    return base.square().mul_(base)
