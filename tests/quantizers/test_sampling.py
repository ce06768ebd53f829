"""Codes drawn in training instead of the nearest."""

import copy

import pytest
import torch

import vqkit


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_codes_are_drawn_by_their_distance(metric):
    torch.manual_seed(1)
    quantizer = vqkit.Quantizer(4, 6, metric=metric, temperature=0.5)
    x, number = torch.randn(4), 20000
    codes = quantizer.codes.double()
    found = quantizer(x.expand(number, 4))
    if metric == "cosine":
        logits = torch.nn.functional.normalize(x, dim=-1).double() @ codes.T
    else:
        logits = -torch.cdist(x[None].double(), codes)[0]
    expected = (logits / 0.5).softmax(-1) * number
    assert float(((found.counts - expected).square() / expected).sum()) < 25
    assert torch.equal(found.quantized, codes.float()[found.indices])


def test_heads_masks_seeds_and_eval_mode():
    quantizer = vqkit.Quantizer(6, 9, heads=2, codebook_dim=3, temperature=3.0, codebook="learned")
    x, mask = torch.randn(50, 6), torch.arange(50) % 3 > 0
    x[1, 2] = torch.nan
    torch.manual_seed(2)
    first, second = quantizer(x, mask), quantizer(x, mask)
    torch.manual_seed(2)
    assert torch.equal(quantizer(x, mask).indices, first.indices) and not torch.equal(second.indices, first.indices)
    kept = mask & (torch.arange(50) != 1)
    assert torch.equal((first.indices >= 0).all(-1), kept) and not first.quantized[~kept].any() and first.loss.isfinite()
    nearest = quantizer.encode(x, mask)
    assert not torch.equal(nearest, first.indices) and torch.equal(quantizer.eval()(x, mask).indices, nearest)


def test_without_it_no_number_is_drawn():
    quantizer = vqkit.Quantizer(6, 9)
    before = torch.get_rng_state()
    quantizer(torch.randn(0, 6))
    quantizer(torch.ones(5, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_low_temperature_takes_the_nearest():
    quantizer = vqkit.Quantizer(6, 9, temperature=1e-6)
    x = torch.randn(50, 6)
    expected = quantizer.encode(x)
    assert torch.equal(quantizer(x).indices, expected)


def test_it_compiles():
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(6, 9, temperature=0.5)
    compiled = torch.compile(copy.deepcopy(quantizer), fullgraph=True, backend="aot_eager")
    x = torch.randn(50, 6)
    found = []
    for call in (quantizer, compiled):
        torch.manual_seed(3)
        found.append(call(x).indices)
    assert torch.equal(*found) and not torch.equal(compiled(x).indices, found[0])


def test_autocast_draws_in_float32():
    quantizer = vqkit.Quantizer(8, 50, temperature=0.1, codebook="learned")
    x = torch.randn(100, 8)
    torch.manual_seed(3)
    expected = quantizer(x).indices
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x).indices, expected)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="temperature: .*-1"):
        vqkit.Quantizer(6, 9, temperature=-1)
    with pytest.raises(ValueError, match="temperature: .*top_k=2, got 0.5"):
        vqkit.Quantizer(6, 9, temperature=0.5, top_k=2)
