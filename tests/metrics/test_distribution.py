"""Kernel distance, score and precision against torchmetrics or naive formulas, and the names under which they are reported."""

import sys

import pytest
import torch

from vqkit.metrics import (Features, PictureFeatures, PictureSet, compare_pictures, frechet_distance, inception_score, kernel_distance,
                           precision_recall)


def cloud(count, dim, seed, scale=1.0, shift=0.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


class Rows(torch.nn.Module):
    def forward(self, rows):
        return rows


class Colours(PictureFeatures):
    """The mean and the deviation of each channel, and three classes."""

    name, dim = "colours", 6

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), requires_grad=False)

    def describe(self, pictures):
        pooled = torch.cat([pictures.mean((2, 3)), pictures.std((2, 3))], 1)
        return Features(pooled, pooled @ self.weight)


def test_kernel_distance_equals_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
    x, y = cloud(150, 12, 0), cloud(130, 12, 1, 1.2, 0.1)
    metric = theirs(feature=Rows(), subsets=7, subset_size=50)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    torch.manual_seed(3)
    mean, deviation = metric.compute()
    ours = kernel_distance(x, y, subsets=7, subset_size=50, generator=torch.Generator().manual_seed(3))
    assert ours == pytest.approx((mean.item(), deviation.item()), rel=1e-9)
    assert kernel_distance(x, y, subsets=2, subset_size=20) == kernel_distance(x, y, subsets=2, subset_size=20)


def test_kernel_distance_of_all_is_unbiased(monkeypatch):
    x, y = cloud(31, 5, 0).double(), cloud(17, 5, 1).double()
    kernel = [(a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    expected = ((kernel[0].sum() - kernel[0].trace()) / (31 * 30) + (kernel[1].sum() - kernel[1].trace()) / (17 * 16) - 2 * kernel[2].mean()).item()
    assert kernel_distance(x, y, subset_size=None) == pytest.approx((expected, 0.0), rel=1e-10)
    # Blocks of one row give the same.
    monkeypatch.setattr(sys.modules["vqkit.metrics.kernel_distance"], "_BLOCK", 1)
    assert kernel_distance(x, y, subset_size=None)[0] == pytest.approx(expected, rel=1e-10)
    values = torch.tensor([kernel_distance(cloud(20, 3, seed), cloud(20, 3, 1000 + seed), subset_size=None)[0] for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5


def test_score_equals_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.inception").InceptionScore
    logits = cloud(95, 10, 0, 3.0)
    metric = theirs(feature=Rows(), splits=5)
    metric.update(logits.double())
    torch.manual_seed(4)
    mean, deviation = metric.compute()
    ours = inception_score(logits, splits=5, generator=torch.Generator().manual_seed(4))
    # Theirs is the deviation of a sample, the published code's that of the parts.
    assert ours == pytest.approx((mean.item(), deviation.item() * (4 / 5) ** 0.5), rel=1e-6)


def test_score_has_ends():
    sure = torch.eye(8).repeat(10, 1) * 1000
    assert inception_score(sure, splits=1) == (pytest.approx(8), 0.0)
    assert inception_score(sure[:1].expand(20, -1), splits=2) == (pytest.approx(1), 0.0)
    assert inception_score(torch.zeros(20, 8), splits=2)[0] == pytest.approx(1)


def naive(real, generated, k):
    real, generated = real.double(), generated.double()

    def squared(a, b):
        return (a[:, None] - b[None]).square().sum(-1)

    radii, other = squared(real, real).sort(1).values[:, k], squared(generated, generated).sort(1).values[:, k]
    cross = squared(real, generated)
    inside = cross <= radii[:, None]
    return (inside.any(0).double().mean().item(), (cross <= other[None]).any(1).double().mean().item(),
            inside.double().sum().item() / (k * len(generated)), inside.any(1).double().mean().item())


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (0.5, 0.0), (1.0, 1.5), (1.0, 100.0)])
def test_precision_and_recall_equal_the_naive_formula(k, scale, shift, monkeypatch):
    monkeypatch.setattr(sys.modules["vqkit.metrics.precision_recall"], "_BLOCK", 1000)
    real, generated = cloud(120, 4, 0), cloud(90, 4, 1, scale, shift)
    assert precision_recall(real, generated, k) == pytest.approx(naive(real, generated, k), abs=1e-12)


def test_precision_and_recall_of_repeated_features_and_edges():
    # Integers: many equal distances, duplicates with radius 0, and points that lie on the edge of a ball.
    draws = torch.Generator().manual_seed(0)
    real, generated = (torch.randint(0, 4, (count, 3), generator=draws).float() + 1e3 for count in (60, 80))
    for k in (1, 2, 3):
        assert precision_recall(real, generated, k) == pytest.approx(naive(real, generated, k), abs=1e-12)
    same = torch.full((5, 3), 0.1)
    assert precision_recall(same, same, 3)[:2] == (1.0, 1.0) and precision_recall(same, same + 1, 3)[:2] == (0.0, 0.0)


def test_fidelity_and_variety_are_told_apart():
    real = cloud(400, 3, 0)
    few = precision_recall(real, cloud(400, 3, 1, 0.2))
    wide = precision_recall(real, cloud(400, 3, 2, 4.0))
    assert few.precision > 0.95 and few.recall < 0.3 and few.coverage < 0.5
    assert wide.precision < 0.3 and wide.recall > 0.8
    equal = precision_recall(real, cloud(400, 3, 3))
    assert min(equal) > 0.8 and equal.density == pytest.approx(1, abs=0.2)


def pictures(count, seed, brightness=0):
    return (torch.randint(0, 200, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) + brightness).to(torch.uint8)


def test_a_set_of_pictures_is_the_same_however_it_came():
    network = Colours()
    x = pictures(40, 0)
    whole, parts = PictureSet(network), PictureSet(network)
    whole.add(x)
    for numbers in torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(7):
        parts.add(x[numbers], numbers)
    assert len(parts) == len(whole) == 40
    torch.testing.assert_close(parts.pooled, whole.pooled)
    torch.testing.assert_close(parts.logits, whole.logits)
    torch.testing.assert_close(whole.pooled[:, :3], x.double().div(127.5).sub(1).mean((2, 3)).float())
    torch.testing.assert_close(network(x).pooled, network(x.float() / 127.5 - 1).pooled)


def test_numbers_over_another_network_have_its_name():
    network = Colours()
    real, made = PictureSet(network), PictureSet(network)
    real.add(pictures(30, 0))
    made.add(pictures(30, 1, 20))
    found = compare_pictures(real, made)
    assert set(found) == {"fd_colours", "kd_colours", "class_score_colours", "precision_colours", "recall_colours", "density_colours",
                          "coverage_colours"}
    assert found["fd_colours"] == frechet_distance(real.statistics, made.statistics)
    assert found["kd_colours"] == kernel_distance(real.pooled, made.pooled, subset_size=None)[0]
    assert network.label("frechet_distance") == "FD(colours)" and network.label("kernel_distance") == "KD(colours)"
    with pytest.raises(ValueError, match="metric: expected one of frechet_distance, .* got 'fid'"):
        network.key("fid")
    few = PictureSet(network)
    few.add(pictures(2, 0))
    assert set(compare_pictures(few, few)) == {"fd_colours", "kd_colours", "class_score_colours"}


def test_what_does_not_fit():
    x = torch.zeros(5, 3)
    bad = torch.full((5, 3), float("inf"))
    for measure in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=r"generated: expected \(N, 3\), got \(5, 2\)"):
            measure(x, x[:, :2])
        with pytest.raises(ValueError, match="real: expected finite values"):
            measure(bad, x)
    with pytest.raises(ValueError, match=r"subset_size: expected 2 .. 5, the smaller of 6 real and 5 generated features, got 1000"):
        kernel_distance(torch.zeros(6, 3), x)
    with pytest.raises(ValueError, match="subsets: expected at least 1, got 0"):
        kernel_distance(x, x, subset_size=2, subsets=0)
    with pytest.raises(ValueError, match=r"k: expected 1 .. 7, got 8"):
        precision_recall(x, x, 8)
    with pytest.raises(ValueError, match="real: expected more than k = 5 features, got 5"):
        precision_recall(x, x, 5)
    with pytest.raises(ValueError, match=r"splits: expected 1 .. 5, .* got 10"):
        inception_score(x)
    network = Colours()
    with pytest.raises(ValueError, match=r"pictures: expected \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(TypeError, match="pictures: expected uint8 or floating point .* got torch.int64"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    chosen = PictureSet(network)
    with pytest.raises(ValueError, match=r"numbers: expected \(2,\), one a picture, got \(3,\)"):
        chosen.add(torch.zeros(2, 3, 8, 8), torch.arange(3))
    assert len(chosen) == 0
    with pytest.raises(ValueError, match="features of one network"):
        compare_pictures(chosen, PictureSet(Colours()))
