"""The Fréchet distance between two sets of features, from means and covariances that are gathered batch by batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class FeatureStatistics:
    """Count, mean and covariance of features, in float64, however they come in batches.

        mean = 1/N sum_n x_n        covariance = 1/(N - 1) sum_n (x_n - mean)(x_n - mean)^T

    Args:
        dim: D.

    `add` takes a batch; `merge` adds another one's, as if its features had been added here; `reduced` returns those of all ranks together
    by one all-reduce. Memory is O(D^2), whatever N.
    Source: Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        if dim < 1:
            raise ValueError(f"dim: expected at least 1, got {dim}")
        self.dim, self.count = dim, 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        # sum of (x - mean)(x - mean)^T
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @property
    def mean(self) -> Tensor:
        """(D,) float64. Raises ValueError while nothing was added."""
        self._require(1, "mean")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased. Raises ValueError for less than two features."""
        self._require(2, "covariance")
        return self._scatter / (self.count - 1)

    def add(self, features: Tensor) -> None:
        """Add features (B, D). Raises ValueError for another shape, or where one is not finite; nothing is added then."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features: expected (B, {self.dim}), got {tuple(features.shape)}")
        if not len(features):
            return
        if not features.isfinite().all():
            raise ValueError(f"features: expected finite values, got {int((~features.isfinite().all(1)).sum())} of {len(features)} that are not")
        features = features.detach().to(self._mean)
        mean = features.mean(0)
        self._combine(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: FeatureStatistics) -> None:
        """Add another one's features. Raises ValueError where D differs."""
        if other.dim != self.dim:
            raise ValueError(f"other: expected features of {self.dim} dimensions, got {other.dim}")
        if other.count:
            self._combine(other.count, other._mean.to(self._mean), other._scatter.to(self._scatter))

    def reduced(self) -> FeatureStatistics:
        """Those of all ranks together (a copy; without torch.distributed, of this one)."""
        total = FeatureStatistics(self.dim, self._mean.device)
        if not (dist.is_available() and dist.is_initialized()):
            total.merge(self)
            return total
        # Moments about zero, which add up: their shape does not depend on the data.
        sums = self._mean * self.count
        moments = torch.cat([self._mean.new_tensor([self.count]), sums, (self._scatter + torch.outer(sums, self._mean)).flatten()])
        dist.all_reduce(moments)
        total.count = int(moments[0])
        if total.count:
            total._mean = moments[1 : self.dim + 1] / total.count
            total._scatter = moments[self.dim + 1 :].view_as(self._scatter) - torch.outer(total._mean, total._mean) * total.count
        return total

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total, apart = self.count + count, mean - self._mean
        self._mean = self._mean + apart * (count / total)
        self._scatter = self._scatter + scatter + torch.outer(apart, apart) * (self.count * count / total)
        self.count = total

    def _require(self, count: int, what: str) -> None:
        if self.count < count:
            raise ValueError(f"statistics: expected at least {count} features for a {what}, got {self.count}")


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """The Fréchet distance between the normal distributions of two sets of features; over Inception's, FID.

        d = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1^1/2 S2 S1^1/2)^1/2)

    Symmetric, 0 for equal statistics and never below 0. Biased upwards by about D / N where features are few: compare only values over
    equally many pictures. Raises ValueError where the dimensions differ or one has less than two features.
    Source: Dowson & Landau, The Fréchet Distance between Multivariate Normal Distributions, 1982; Heusel et al., arXiv 1706.08500, eq. 6.
    """
    if one.dim != other.dim:
        raise ValueError(f"one, other: expected features of one dimension, got {one.dim} and {other.dim}")
    for name, statistics in (("one", one), ("other", other)):
        if statistics.count < 2:
            raise ValueError(f"{name}: expected at least 2 features for a covariance, got {statistics.count}")
    return gaussian_distance(one.mean, one.covariance, other.mean, other.covariance)


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The same of means (D,) and covariances (D, D), such as those that are published for a data set; computed in float64.

    Covariances may be of any rank. Raises ValueError for shapes that do not fit or values that are not finite.
    """
    dim = len(mean)
    for name, value, shape in (("mean", mean, (dim,)), ("covariance", covariance, (dim, dim)), ("other_mean", other_mean, (dim,)),
                               ("other_covariance", other_covariance, (dim, dim))):
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name}: expected finite values")
    mean, covariance = mean.double(), covariance.double()
    other_mean, other_covariance = other_mean.to(mean), other_covariance.to(covariance)
    # With S = R R^T, the eigenvalues of S1^1/2 S2 S1^1/2 are the squared singular values of R1^T R2: taken without the square, none of them
    # loses half of its digits to a square root.
    shared = torch.linalg.svdvals(_root(covariance).T @ _root(other_covariance)).sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * shared
    return max(distance.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = S, (D, rank), by eigenvectors."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
