"""Fréchet distance against torchmetrics, scipy's matrix square root and closed forms; statistics against the covariance of all at once."""

import numpy as np
import pytest
import torch

from vqkit.metrics import FeatureStatistics, frechet_distance, gaussian_distance


def features(count, dim, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    return (torch.randn(count, dim, generator=generator) @ mixing) * scale + shift


def statistics(x, batch=None):
    found = FeatureStatistics(x.shape[1])
    for part in x.split(batch or len(x)):
        found.add(part)
    return found


def by_scipy(x, y):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = x.double().numpy(), y.double().numpy()
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(one @ other)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * np.real(root))


@pytest.mark.parametrize("count, dim", [(300, 16), (200, 64), (1000, 5)])
def test_equals_torchmetrics_and_scipy(count, dim):
    theirs = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    x, y = features(count, dim, 0), features(count - 40, dim, 1, scale=1.3, shift=0.2)
    ours = frechet_distance(statistics(x, 64), statistics(y, 37))

    class Same(torch.nn.Module):
        num_features = dim

        def forward(self, rows):
            return rows

    metric = theirs(feature=Same()).set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-4)
    assert ours == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_closed_forms():
    mean, other = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    a, b = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 4.0, 25.0])
    assert gaussian_distance(mean, torch.diag(a), other, torch.diag(b)) == pytest.approx(5 + (1 + 1 + 25), rel=1e-12)
    assert gaussian_distance(mean, torch.diag(a), mean, torch.diag(a)) == pytest.approx(0, abs=1e-12)
    # Distances of one-dimensional subspaces: the covariance's part along each other.
    v, w = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])
    assert gaussian_distance(mean, torch.outer(v, v), mean, torch.outer(w, w)) == pytest.approx(2 - 2 * 0.6, rel=1e-6)


@pytest.mark.parametrize("count", [2, 10, 63])
def test_fewer_features_than_dimensions(count):
    """A rotation into the space that the features span does not change the distance, and there the covariances are of full rank."""
    x, y = features(count, 64, 0).double(), features(count, 64, 1).double()
    basis = torch.linalg.qr(torch.cat([x, y]).T)[0]
    ours = frechet_distance(statistics(x), statistics(y))
    one, other = (x - x.mean(0)) / (count - 1) ** 0.5, (y - y.mean(0)) / (count - 1) ** 0.5
    # tr (S1^1/2 S2 S1^1/2)^1/2 is the nuclear norm of the N x N product of the centred features.
    expected = (x.mean(0) - y.mean(0)).square().sum() + one.square().sum() + other.square().sum() - 2 * torch.linalg.matrix_norm(one @ other.T, "nuc")
    assert ours == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(statistics(x @ basis), statistics(y @ basis)) == pytest.approx(ours, rel=1e-10)
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=1e-10 * one.square().sum().item())
    assert frechet_distance(statistics(y), statistics(x)) == pytest.approx(ours, rel=1e-12)


def test_statistics_do_not_depend_on_batches_or_merging():
    # An offset a million times the spread: sums of squares would have lost all digits.
    x = features(500, 7, 3).double() + 1e6
    expected = np.cov(x.numpy(), rowvar=False)
    for found in (statistics(x), statistics(x, 1), statistics(x, 123)):
        np.testing.assert_allclose(found.covariance, expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-14)
    merged = statistics(x[:100], 30)
    merged.merge(statistics(x[100:], 70))
    merged.merge(FeatureStatistics(7))
    assert merged.count == 500
    np.testing.assert_allclose(merged.covariance, expected, rtol=1e-7, atol=1e-9)
    copy = merged.reduced()
    copy.add(x)
    assert merged.count == 500 and copy.count == 1000


def test_what_does_not_fit():
    found = FeatureStatistics(3)
    with pytest.raises(ValueError, match="at least 1 features for a mean, got 0"):
        found.mean
    found.add(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2 features for a covariance, got 1"):
        found.covariance
    with pytest.raises(ValueError, match="one: expected at least 2 features for a covariance, got 1"):
        frechet_distance(found, found)
    with pytest.raises(ValueError, match=r"features: expected \(B, 3\), got \(2, 4\)"):
        found.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="features: expected finite values, got 1 of 2"):
        found.add(torch.tensor([[0.0, 0, 0], [0, float("nan"), 0]]))
    assert found.count == 1
    with pytest.raises(ValueError, match="one dimension, got 3 and 4"):
        frechet_distance(found, FeatureStatistics(4))
    with pytest.raises(ValueError, match="3 dimensions, got 4"):
        found.merge(FeatureStatistics(4))
    with pytest.raises(ValueError, match=r"other_covariance: expected \(2, 2\), got \(3, 3\)"):
        gaussian_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(3))
