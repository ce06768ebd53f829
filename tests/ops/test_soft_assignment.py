"""Soft assignments and draws in blocks: the values and gradients of the plain formula, whatever the block."""

import importlib

import pytest
import torch

from vqkit.ops import sample_codes, soft_assignment

# ``vqkit.ops.soft_assignment`` is the function.
module = importlib.import_module("vqkit.ops.soft_assignment")


def affinities(latents, codes, affinity):
    if affinity == "similarity":
        return latents @ codes.T
    square = (latents[:, None] - codes).square().sum(-1)
    return -square if affinity == "squared" else -square.sqrt()


def plain(latents, codes, mask, scale, affinity):
    log_share = (scale * affinities(latents[mask], codes, affinity)).log_softmax(-1)
    return log_share.exp().sum(0), -(log_share.exp() * log_share).sum()


@pytest.fixture(params=[7, 1 << 20], ids=["a row a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


@pytest.mark.parametrize("affinity", ["distance", "squared", "similarity"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_values_and_gradients_of_the_formula(affinity, dtype, tolerance, block):
    latents, codes = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (9, 7))
    mask = torch.arange(9) != 4
    weights = torch.randn(7, dtype=torch.float64)

    def loss(mass, entropy):
        return (weights.to(mass.dtype) * mass.square()).sum() + 3 * entropy

    expected = plain(latents, codes, mask, 2.5, affinity)
    wanted = torch.autograd.grad(loss(*expected), (latents, codes))
    low = [t.detach().to(dtype).requires_grad_() for t in (latents, codes)]
    found = soft_assignment(*low, mask, scale=2.5, affinity=affinity)
    gradients = torch.autograd.grad(loss(*found), low)
    for a, b in zip((*found, *gradients), (*expected, *wanted), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_a_latent_on_its_code_has_a_finite_gradient(block):
    codes = torch.randn(4, 3, requires_grad=True)
    latents = codes.detach()[:2].clone().requires_grad_()
    mass, entropy = soft_assignment(latents, codes, torch.ones(2, dtype=torch.bool), scale=100)
    (mass[0] + entropy).backward()
    assert latents.grad.isfinite().all() and codes.grad.isfinite().all()


def test_far_from_the_origin_it_is_the_same():
    latents, codes, mask = torch.randn(50, 8), torch.randn(6, 8), torch.ones(50, dtype=torch.bool)
    near = soft_assignment(latents, codes, mask, scale=3)
    far = soft_assignment(latents + 1000, codes + 1000, mask, scale=3)
    torch.testing.assert_close(far, near, rtol=1e-2, atol=1e-2)


def test_nothing_comes_of_masked_rows_and_codes_that_are_not_finite(block):
    latents, codes, mask = torch.randn(6, 3), torch.randn(5, 3), torch.tensor([True, False, True, True, False, True])
    latents[1], latents[4, 0], codes[2, 1] = torch.nan, torch.inf, torch.nan
    latents.requires_grad_()
    mass, entropy = soft_assignment(latents, codes, mask, scale=1)
    (mass.square().sum() + entropy).backward()
    kept = torch.tensor([0, 1, 3, 4])
    expected = plain(latents.detach()[mask].double(), codes[kept].double(), slice(None), 1, "distance")
    torch.testing.assert_close((mass[kept].double(), entropy.double()), expected, rtol=1e-5, atol=1e-5)
    assert mass[2] == 0 and not latents.grad[~mask].any() and latents.grad.isfinite().all()
    indices = sample_codes(latents, codes, mask, scale=1)
    assert torch.equal(indices >= 0, mask) and not (indices == 2).any()


@pytest.mark.parametrize("affinity", ["distance", "similarity"])
def test_draws_have_the_probabilities_of_the_softmax(affinity, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", max(module._BLOCK, 5000))
    latent, codes, number = torch.randn(1, 4), torch.randn(6, 4), 20000
    indices = sample_codes(latent.expand(number, 4), codes, torch.ones(number, dtype=torch.bool), scale=0.7, affinity=affinity)
    expected = (0.7 * affinities(latent.double(), codes.double(), affinity))[0].softmax(-1) * number
    counts = torch.bincount(indices, minlength=6)
    chi_square = float(((counts - expected).square() / expected).sum())
    assert chi_square < 25, "above that once in 7,000 for 5 degrees of freedom"


def test_draws_follow_the_seed():
    arguments = torch.randn(100, 4), torch.randn(50, 4), torch.ones(100, dtype=torch.bool)
    torch.manual_seed(3)
    first = sample_codes(*arguments, scale=0.1)
    second = sample_codes(*arguments, scale=0.1)
    torch.manual_seed(3)
    assert torch.equal(sample_codes(*arguments, scale=0.1), first) and not torch.equal(first, second)


def test_memory_is_that_of_a_block(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1 << 12)
    largest = 0
    softmax = torch.softmax

    def watched(scores, dim):
        nonlocal largest
        largest = max(largest, scores.numel())
        return softmax(scores, dim)

    monkeypatch.setattr(torch, "softmax", watched)
    latents, codes = torch.randn(3000, 4, requires_grad=True), torch.randn(500, 4)
    mass, entropy = soft_assignment(latents, codes, torch.ones(3000, dtype=torch.bool), scale=1)
    (mass.square().sum() + entropy).backward()
    assert 0 < largest <= 1 << 12 and latents.grad.any()


def test_bad_input_is_named():
    latents, codes, mask = torch.randn(3, 2), torch.randn(4, 2), torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="affinity: .*'dot'"):
        soft_assignment(latents, codes, mask, scale=1, affinity="dot")
    with pytest.raises(ValueError, match=r"mask: .*\(3,\)"):
        soft_assignment(latents, codes, mask[:2], scale=1)
    with pytest.raises(TypeError, match="bfloat16"):
        sample_codes(latents.bfloat16(), codes.bfloat16(), mask, scale=1)
