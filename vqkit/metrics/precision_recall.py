"""Whether generated pictures look real and whether they are as varied, each by itself, from features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.ops.nearest import MAX_K, nearest_codes

# Distances at a time.
_BLOCK = 1 << 19


class Manifold(NamedTuple):
    """How two sets of features cover one another; all in 0 .. 1 but density, which has no upper end and is near 1 for equal sets."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> Manifold:
    """Precision, recall, density and coverage over balls B(x) whose radius is the distance from x to its k-th nearest neighbour in its set.

        precision = share of generated features in at least one ball of a real one
        recall    = share of real features in at least one ball of a generated one
        density   = 1/(k M) sum over generated features of the number of real balls each is in
        coverage  = share of real features whose ball holds at least one generated one

    A feature on the edge is inside. Features are compared in float64; pairs that rounding could decide are compared again by sums of
    squared differences.

    Args:
        real, generated: (N, D) and (M, D), more than k of each.
        k: 1 .. 7; 3 as published for precision and recall, 5 for density and coverage.

    Memory is O(N + M) and a block of distances. Raises ValueError for shapes that do not fit, values that are not finite, or too few features.
    Source: Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2; Naeem et al., arXiv 2002.09797, equations 3 and 4.
    """
    if not 1 <= k < MAX_K:
        raise ValueError(f"k: expected 1 .. {MAX_K - 1}, got {k}")
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or features.shape[1] != real.shape[-1]:
            raise ValueError(f"{name}: expected (N, {real.shape[-1]}), got {tuple(features.shape)}")
        if len(features) <= k:
            raise ValueError(f"{name}: expected more than k = {k} features, got {len(features)}")
        if not features.isfinite().all():
            raise ValueError(f"{name}: expected finite values")
    real, generated = real.detach(), generated.detach().to(real)
    radii, other_radii = _radii(real, k), _radii(generated, k)
    real_balls = _balls_around(generated, real, radii)
    generated_balls = _balls_around(real, generated, other_radii)
    nearest = nearest_codes(real, generated, 1)[1][:, 0]
    covered = _apart(real, generated[nearest]) <= radii
    return Manifold((real_balls > 0).double().mean().item(), (generated_balls > 0).double().mean().item(),
                    real_balls.double().mean().item() / k, covered.double().mean().item())


def _radii(features: Tensor, k: int) -> Tensor:
    """(N,) float64: the squared distance to the k-th nearest other feature."""
    # One more than k: each is the nearest to itself. The operator's distances are float32, so they are taken again.
    return _apart(features, features[nearest_codes(features, features, k + 1)[1][:, k]])


def _balls_around(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """(P,) int64: in how many balls each point is; radii are squared."""
    # About a common point, or an offset of all features would cost digits.
    offset = centres.double().mean(0)
    around, lengths = centres.double() - offset, (centres.double() - offset).square().sum(1)
    counts = []
    for some in points.split(max(1, _BLOCK // len(centres))):
        moved = some.double() - offset
        squares = moved.square().sum(1, keepdim=True)
        beyond = squares + lengths - radii - 2 * moved @ around.T
        inside = beyond <= 0
        rows, columns = (beyond.abs() <= 1e-12 * (squares + lengths) * centres.shape[1] ** 0.5).nonzero(as_tuple=True)
        inside[rows, columns] = _apart(some[rows], centres[columns]) <= radii[columns]
        counts.append(inside.sum(1))
    return torch.cat(counts)


def _apart(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() - y.double()).square().sum(1)
