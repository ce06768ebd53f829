"""Quantizing at any rate: both halves of training against the plain formulas, the draw of a rate, and the promises of a quantizer."""

import pytest
import torch
from torch import nn

from vqkit.codebooks import EMACodebook, LearnedCodebook, RateAdaptiveCodebook
from vqkit.codebooks.rate_adaptive import resize_codes
from vqkit.quantizers import Quantizer, RateAdaptiveQuantizer


class Grow(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def forward(self, codes, count):
        codes = codes.to(self.layer.weight.dtype)
        return self.layer(codes.repeat(-(-count // len(codes)), 1)[:count]) + torch.arange(count, device=codes.device)[:, None] / 100


def make(source=EMACodebook, rates=(3, 30), generate=None, **options):
    torch.manual_seed(1)
    book = source(20, 6, cosine=options.get("metric") == "cosine")
    return RateAdaptiveQuantizer(RateAdaptiveCodebook(book, generate or Grow(6)), rates, **options)


def nearest(x, codes):
    distances = (x.double()[..., None, :] - codes.double()).square().sum(-1)
    return distances.argmin(-1)


@pytest.mark.parametrize("source", [EMACodebook, LearnedCodebook])
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_training_is_the_sum_of_both_losses_and_half_of_each_output(source, batch):
    quantizer = make(source, rates=(9, 9))
    x = torch.randn(batch, 7, 6, requires_grad=True)
    codes, adapted = quantizer.codes.detach().clone(), quantizer.codes_at(9)
    result = quantizer(x)
    indices = torch.stack([nearest(x, codes), nearest(x, adapted)])
    errors = [(x - codes[indices[0]]).square().mean(), (x - adapted[indices[1]]).square().mean()]
    learned = source is LearnedCodebook
    torch.testing.assert_close(result.loss, (0.25 + learned) * errors[0] + 1.25 * errors[1])
    names = ["commitment", *["codebook"] * learned, "adapted_commitment", "adapted_codebook"]
    torch.testing.assert_close(result.losses, dict(zip(names, [errors[0]] * (1 + learned) + [errors[1]] * 2)))
    first = (batch + 1) // 2
    assert torch.equal(result.indices, torch.cat([indices[0][:first], indices[1][first:]]))
    torch.testing.assert_close(result.quantized, torch.cat([codes[indices[0]][:first], adapted[indices[1]][first:]]))
    assert torch.equal(result.counts, torch.bincount(indices[0].flatten(), minlength=20))
    # Straight through, and both commitments.
    weights = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((result.quantized * weights).sum() + result.loss, x, retain_graph=True)
    pulls = [2 * 0.25 * (x - c[i]) / x.numel() for c, i in zip((codes, adapted), indices)]
    torch.testing.assert_close(gradient, weights + sum(pulls))
    found = torch.autograd.grad(result.loss, quantizer.codebook.generate.layer.weight)[0]
    expected = torch.autograd.grad((x.detach() - adapted[indices[1]]).square().mean(), quantizer.codebook.generate.layer.weight)[0]
    torch.testing.assert_close(found, expected)


def test_the_source_learns_as_in_a_plain_quantizer():
    quantizer = make()
    plain = Quantizer(6, 20, codebook=EMACodebook(20, 6), commitment_weight=0.25)
    plain.codebook.load_state_dict(quantizer.codebook.source.state_dict())
    for _ in range(3):
        x = torch.randn(4, 30, 6)
        quantizer(x), plain(x)
    torch.testing.assert_close(quantizer.codebook.source.state_dict(), plain.codebook.state_dict())


def test_rates_are_drawn_from_the_default_generator_within_the_bounds():
    quantizer, asked = make(rates=(3, 6)), []
    quantizer.codebook.generate.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[1]))
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        for _ in range(20):
            quantizer(torch.randn(2, 3, 6))
    assert set(asked) == {3, 4, 5, 6} and asked[:20] == asked[20:40] != asked[40:]
    quantizer(torch.randn(2, 3, 6), rate=11)
    assert asked[-1] == 11


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"channel_first": True, "gradient": "rotation"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_decode_of_encode_is_eval_forward_at_any_rate(options, dtype):
    quantizer = make(**options).to(dtype)
    x, mask = torch.randn(3, 6, 5, 6).to(dtype), torch.rand(3, 5, 6) > 0.3
    x = x if options.get("channel_first") else x.movedim(1, -1)
    quantizer(x, mask)
    quantizer.eval()
    for rate in (None, 1, 7, 20, 33):
        quantized, indices, _ = found = quantizer(x, mask, rate=rate)
        assert torch.equal(quantizer.encode(x, mask, rate=rate), indices)
        assert torch.equal(quantizer.decode(indices, rate=rate, dtype=dtype), quantized)
        assert (indices[~mask] == -1).all() and indices.max() < (rate or 20) and len(found.counts) == (rate or 20)
        assert found.counts.sum() == mask.sum() and quantized.dtype == dtype
    assert torch.equal(quantizer(x, mask).quantized, quantizer(x, mask, rate=20).quantized)


def test_rows_left_out_do_not_matter():
    results = []
    x, mask = torch.randn(4, 10, 6), torch.rand(4, 10) > 0.3
    for rows, keep in ((x, mask), (x.masked_fill(~mask[..., None], torch.nan), None)):
        quantizer = make(rates=(9, 9))
        rows.requires_grad_()
        result = quantizer(rows, keep)
        (result.loss + result.quantized.square().sum()).backward()
        gradients = [p.grad for p in quantizer.parameters()]
        results.append([*result, rows.grad, *gradients, *quantizer.state_dict().values()])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))
    empty = make()(torch.full((4, 10, 6), torch.nan))
    assert empty.loss == 0 and (empty.indices == -1).all()


def test_frozen_and_untrained_forms():
    quantizer = make()
    before = {name: value.clone() for name, value in quantizer.codebook.state_dict().items()}
    x = torch.randn(2, 9, 6, requires_grad=True)
    quantizer(x, learn=False).loss.backward()
    torch.testing.assert_close(quantizer.codebook.state_dict(), before)
    assert all(p.grad is None for p in quantizer.parameters())
    plain = make(rates=None, generate=resize_codes)
    assert set(plain(x).losses) == {"commitment"} and plain(x, rate=5).indices.max() < 5
    assert plain.eval().decode(plain.encode(x, rate=40), rate=40).shape == x.shape


def test_states_restore_it():
    quantizer, twin, x = make(), make(), torch.randn(4, 9, 6)
    quantizer(x)
    twin.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer.eval()(x, rate=8).quantized, twin.eval()(x, rate=8).quantized)


@pytest.mark.parametrize("rate", [None, 7])
def test_eval_compiles_whole(rate):
    torch._dynamo.reset()
    quantizer, x = make().eval(), torch.randn(4, 9, 6)
    found = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x, rate=rate)
    expected = quantizer(x, rate=rate)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.quantized, expected.quantized)


def test_errors_name_what_does_not_fit():
    quantizer = make()
    for call, error, message in [
        (lambda: make(rates=(5, 4)), ValueError, r"rates: .*\(5, 4\)"),
        (lambda: make(rates=(0, 4)), ValueError, r"rates: .*\(0, 4\)"),
        (lambda: RateAdaptiveQuantizer(EMACodebook(4, 2), (1, 2)), TypeError, "codebook: expected a RateAdaptiveCodebook, got EMACodebook"),
        (lambda: make(metric="dot"), ValueError, "metric"),
        (lambda: quantizer(torch.randn(6)), ValueError, "x: expected at least two dimensions"),
        (lambda: quantizer(torch.randn(2, 5)), ValueError, "x: .*D = 6"),
        (lambda: quantizer(torch.randn(2, 6), torch.ones(3, dtype=torch.bool)), ValueError, "mask: "),
        (lambda: quantizer(torch.randn(2, 6), rate=0), ValueError, "rate: expected at least 1, got 0"),
        (lambda: quantizer.encode(torch.randn(2, 6), rate=-1), ValueError, "rate: "),
        (lambda: quantizer.decode(torch.tensor([4]), rate=4), IndexError, "indices: "),
    ]:
        before = [t.clone() for t in quantizer.state_dict().values()]
        with pytest.raises(error, match=message):
            call()
        assert all(torch.equal(a, b) for a, b in zip(before, quantizer.state_dict().values()))
