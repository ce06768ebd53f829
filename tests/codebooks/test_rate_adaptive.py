"""Codes of other rates: the cache, softmax k-means, its inverse and MMD, each against its formula in float64."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vqkit.codebooks import EMACodebook, LearnedCodebook, RateAdaptiveCodebook, rate_adaptive
from vqkit.codebooks.rate_adaptive import cluster_codes, expand_codes, mmd, resize_codes, soft_kmeans


class Cut(nn.Module):
    """The first codes through a linear layer; counts its calls."""

    def __init__(self, dim):
        super().__init__()
        self.layer, self.calls = nn.Linear(dim, dim), 0

    def forward(self, codes, count):
        self.calls += 1
        return self.layer(codes.repeat(count, 1)[:count])


def reference_kmeans(points, centres, temperature, iterations):
    points, centres = points.double(), centres.double()
    spread = (points - points.mean(0)).square().sum(-1).mean().sqrt()
    for _ in range(iterations):
        distances = (points[:, None] - centres).square().sum(-1).clamp(min=1e-30).sqrt()
        shares = torch.softmax(-distances / (temperature * spread), -1)
        centres = (shares[..., None] * points[:, None]).sum(0) / shares.sum(0)[:, None]
    return centres


@pytest.mark.parametrize("block", [1 << 20, 13])
def test_soft_kmeans_is_its_formula(monkeypatch, block):
    monkeypatch.setattr(rate_adaptive, "_BLOCK", block)
    points = torch.randn(23, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    found = soft_kmeans(points, start, temperature=0.3, iterations=5, tolerance=0)
    # The spread is a constant there: the same value, without its gradient.
    scale = (points - points.mean(0)).square().sum(-1).mean().sqrt().detach()
    centres = start
    for _ in range(5):
        shares = torch.softmax(-(points[:, None] - centres).square().sum(-1).sqrt() / (0.3 * scale), -1)
        centres = (shares[..., None] * points[:, None]).sum(0) / shares.sum(0)[:, None]
    torch.testing.assert_close(found, centres)
    weights = torch.randn(4, 3, dtype=torch.float64)
    gradients = [torch.autograd.grad((c * weights).sum(), (points, start), retain_graph=True) for c in (found, centres)]
    torch.testing.assert_close(*gradients)


def test_soft_kmeans_does_not_depend_on_scale_or_place_and_stops():
    points = torch.randn(40, 4, dtype=torch.float64)
    found = soft_kmeans(points, points[:5])
    torch.testing.assert_close(soft_kmeans(points * 1e-3 + 7, points[:5] * 1e-3 + 7), found * 1e-3 + 7)
    # A fixed point: one more iteration changes nothing but below the tolerance.
    again = reference_kmeans(points, found, 0.01, 1)
    assert (again - found).abs().max() < 1e-3


def test_well_separated_groups_are_found_and_a_centre_without_points_stays():
    groups = torch.eye(3, dtype=torch.float64).repeat_interleave(6, 0) * 10 + 0.01 * torch.randn(18, 3, dtype=torch.float64)
    found = soft_kmeans(groups, groups[[0, 6, 12]])
    torch.testing.assert_close(found, groups.view(3, 6, 3).mean(1), rtol=0, atol=1e-6)
    far = torch.cat([groups[[0, 6]], groups.new_full((1, 3), 1e6)])
    assert torch.equal(soft_kmeans(groups, far)[2], far[2])
    same = torch.ones(5, 2)
    assert torch.equal(soft_kmeans(same, same[:2]), same[:2])


def test_fewer_codes_stand_where_the_codes_are():
    codes = torch.randn(64, 4)
    fewer = cluster_codes(codes, 16)
    assert torch.equal(cluster_codes(codes, 16), fewer)
    near = torch.cdist(codes, fewer).amin(1)
    assert near.square().mean() < 0.8 * torch.cdist(codes, codes[:16]).amin(1).square().mean()


def test_mmd_is_its_formula(monkeypatch):
    x, y = torch.randn(7, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def kernel(a, b):
        squares = (a[:, None] - b).square().sum(-1)
        return sum(w**2 / (w**2 + squares) for w in (0.2, 0.5, 0.9, 1.3)).mean()

    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    monkeypatch.setattr(rate_adaptive, "_BLOCK", 11)
    torch.testing.assert_close(mmd(x, y), expected)
    torch.testing.assert_close(torch.autograd.grad(mmd(x, y), (x, y)), torch.autograd.grad(expected, (x, y)))
    assert mmd(x, x).abs() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_more_codes_whose_kmeans_is_the_source(scale):
    codes = torch.randn(12, 4) * scale
    with torch.no_grad():
        more = expand_codes(codes, 31)
    assert torch.equal(expand_codes(codes, 31), more) and not more.requires_grad
    means = soft_kmeans(more, codes, iterations=10)
    error = (means - codes).square().sum(-1).mean() / codes.square().sum(-1).mean()
    assert error < 1e-3
    # None is a copy of another.
    assert torch.pdist(more / scale).min() > 1e-3
    with torch.inference_mode():
        assert torch.equal(expand_codes(codes, 31), more)


def test_resizing_takes_the_route_that_fits():
    codes = torch.randn(10, 3)
    assert torch.equal(resize_codes(codes, 10), codes)
    assert torch.equal(resize_codes(codes, 4), cluster_codes(codes, 4)) and torch.equal(resize_codes(codes, 15), expand_codes(codes, 15))


def test_adapted_codes_are_kept_in_eval_mode_until_something_changes():
    book = RateAdaptiveCodebook(EMACodebook(10, 3, decay=0.5), Cut(3)).eval()
    calls = lambda: book.generate.calls  # noqa: E731
    with torch.no_grad():
        first = book.adapted(4)
        assert book.adapted(4) is first and calls() == 1 and len(book.adapted(6)) == 6 and calls() == 2
        assert book.adapted(4) is first and calls() == 2
        book.generate.layer.bias.add_(1)
        torch.testing.assert_close(book.adapted(4), first + 1)
        assert len(book.adapted(6)) == 6 and calls() == 4
        # The source learns: its codes are other ones.
        book.observe(torch.randn(50, 3), torch.arange(50) % 10)
        changed = book.adapted(4)
        torch.testing.assert_close(changed, book.generate.layer(book.source.codes)[:4])
        book.train().eval()
        assert torch.equal(book.adapted(4), changed) and calls() == 6
        twin, restored = copy.deepcopy(book), pickle.loads(pickle.dumps(book))
        twin.generate.layer.bias.zero_()
        assert not torch.equal(twin.adapted(4), changed) and torch.equal(restored.adapted(4), changed)
    assert not changed.requires_grad


def test_training_generates_each_time_with_a_gradient_to_the_network_only():
    book = RateAdaptiveCodebook(LearnedCodebook(10, 3), Cut(3))
    book.adapted(4)
    book.adapted(4).sum().backward()
    assert book.generate.calls == 2 and book.generate.layer.weight.grad.abs().sum() > 0 and book.source.codes.grad is None
    assert book().requires_grad and book.trained_by_gradient and not RateAdaptiveCodebook(EMACodebook(4, 2), Cut(2)).trained_by_gradient


def test_errors_name_what_does_not_fit():
    codes = torch.randn(6, 2)
    for call, message in [
        (lambda: cluster_codes(codes, 7), "count: expected 1 <= count <= 6"),
        (lambda: expand_codes(codes, 5), "count: expected at least 6"),
        (lambda: soft_kmeans(codes, codes[:2], temperature=0), "temperature: expected more than 0"),
        (lambda: RateAdaptiveCodebook(EMACodebook(6, 2), resize_codes).adapted(0), "count: expected at least 1"),
        (lambda: RateAdaptiveCodebook(EMACodebook(6, 2), lambda codes, count: codes).adapted(3), r"generate: .*\(3, 2\), got \(6, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
