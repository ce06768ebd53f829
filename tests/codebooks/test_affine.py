"""Codes that move with the mean and spread of the latents."""

import copy

import pytest
import torch

import vqkit
from vqkit.codebooks import AffineCodebook, EMACodebook, LearnedCodebook


def moments(rows):
    variance, mean = torch.var_mean(rows, 0, correction=0)
    return mean, variance


def test_moments_and_codes_follow_their_formula():
    codebook = AffineCodebook(LearnedCodebook(9, 3), batch_decay=0.6, codebook_decay=0.3)
    inner, valid = codebook.inner.codes.detach(), torch.arange(50) % 5 != 0
    mean = variance = None
    for step in range(3):
        latents = (torch.randn(50, 3) * torch.tensor([1.0, 5, 0.1]) + step)
        latents[~valid] = torch.nan
        codebook.prepare(latents, valid)
        now = moments(latents[valid])
        mean, variance = now if mean is None else (0.6 * mean + 0.4 * now[0], 0.6 * variance + 0.4 * now[1])
        code_mean, code_variance = moments(inner)
        expected = (inner - code_mean) * (variance / code_variance).sqrt() + mean
        torch.testing.assert_close(codebook().detach(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments(codebook().detach()), (mean, variance), rtol=1e-4, atol=1e-5)


def test_the_moments_of_codes_that_move():
    codebook = AffineCodebook(LearnedCodebook(9, 3), codebook_decay=0.3)
    latents, valid = torch.randn(50, 3), torch.ones(50, dtype=torch.bool)
    codebook.prepare(latents, valid)
    mean, variance = moments(codebook.inner.codes.detach())
    with torch.no_grad():
        codebook.inner.codes.mul_(3).add_(1)
    codebook.prepare(latents, valid)
    now = moments(codebook.inner.codes.detach())
    torch.testing.assert_close(codebook.code_mean, 0.3 * mean + 0.7 * now[0])
    torch.testing.assert_close(codebook.code_variance, 0.3 * variance + 0.7 * now[1])


def test_the_inner_codebook_learns_where_it_is():
    inner = EMACodebook(4, 2, decay=0.5)
    codebook = AffineCodebook(inner)
    twin = copy.deepcopy(inner)
    latents, indices = 100 + 7 * torch.randn(40, 2), torch.arange(40) % 4
    codebook.prepare(latents, torch.ones(40, dtype=torch.bool))
    scale = (codebook.latent_variance / codebook.code_variance).sqrt()
    codebook.observe(latents, indices)
    twin.observe((latents - codebook.latent_mean) / scale + codebook.code_mean, indices)
    torch.testing.assert_close(inner.state_dict(), twin.state_dict())


@pytest.mark.parametrize("inner", [EMACodebook, LearnedCodebook])
@pytest.mark.parametrize("kmeans_init", [False, True])
def test_a_quantizer_finds_latents_that_are_far_away(inner, kmeans_init):
    torch.manual_seed(4)
    quantizer = vqkit.Quantizer(3, 16, codebook=AffineCodebook(inner(16, 3, kmeans_init=kmeans_init)))
    x = 1000 + 50 * torch.randn(200, 3)
    result = quantizer(x)
    assert result.usage > 0.5 and result.loss < 50**2
    result.loss.backward() if inner is LearnedCodebook else None
    assert all(p.grad.any() for p in quantizer.parameters())
    before = quantizer.codes.detach().clone()
    quantizer.eval()(x + 1000), quantizer.train()(x + 1000, learn=False)
    assert torch.equal(quantizer.codes, before), "only learning moves the codes"


def test_codes_move_along_with_a_drift():
    torch.manual_seed(5)
    found = []
    for codebook in (EMACodebook(32, 4), AffineCodebook(EMACodebook(32, 4), batch_decay=0.9)):
        quantizer = vqkit.Quantizer(4, 32, codebook=codebook)
        for step in range(60):
            quantizer(torch.randn(256, 4) + 0.2 * step)
        found.append(float(quantizer(torch.randn(256, 4) + 12).usage))
    assert found[1] > found[0]


def test_nothing_valid_moves_nothing():
    codebook = AffineCodebook(EMACodebook(4, 2, kmeans_init=True))
    before = copy.deepcopy(codebook.state_dict())
    codebook.prepare(torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.bool))
    assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())
    assert torch.equal(codebook(), codebook.inner())


def test_channels_and_codes_without_spread():
    for size in (1, 6):
        quantizer = vqkit.Quantizer(3, size, codebook=AffineCodebook(EMACodebook(size, 3)))
        x = torch.randn(30, 3) * torch.tensor([1.0, 0, 1]) + 5
        for _ in range(5):
            result = quantizer(x)
        assert quantizer.codes.isfinite().all() and result.loss < 30


def test_statistics_stay_float32_and_in_the_state():
    codebook = AffineCodebook(LearnedCodebook(4, 2))
    codebook.prepare(torch.randn(9, 2), torch.ones(9, dtype=torch.bool))
    low = copy.deepcopy(codebook).bfloat16()
    assert low().dtype == torch.bfloat16 and torch.equal(low.latent_mean, codebook.latent_mean)
    twin = AffineCodebook(LearnedCodebook(4, 2))
    twin.load_state_dict(codebook.state_dict())
    assert torch.equal(twin(), codebook())


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="inner: .*cosine=True"):
        AffineCodebook(EMACodebook(4, 2, cosine=True))
    with pytest.raises(ValueError, match="batch_decay: .*1.5"):
        AffineCodebook(EMACodebook(4, 2), batch_decay=1.5)
    with pytest.raises(ValueError, match="codebook: .*cosine=True"):
        vqkit.Quantizer(2, 4, metric="cosine", codebook=AffineCodebook(EMACodebook(4, 2)))
