"""Gumbel quantization: the straight-through softmax against its formula, draws, the divergence, masks and bad input."""

import copy
import math

import pytest
import torch

from vqkit.quantizers import GumbelQuantizer

VARIANTS = {"hard": {}, "soft": dict(hard=False), "other length": dict(codebook_dim=3, temperature=0.5)}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_values_and_gradients_follow_the_formula(hard, temperature):
    quantizer = GumbelQuantizer(5, 7, temperature=temperature, hard=hard, kl_weight=0.5).double()
    x = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 5, dtype=torch.float64)
    inputs = [x, *quantizer.parameters()]
    torch.manual_seed(4)
    result = quantizer(x)
    torch.manual_seed(4)
    logits = quantizer.project_in(x)
    scores = logits - torch.empty_like(logits).exponential_().log()
    soft = (scores / temperature).softmax(-1)
    one_hot = torch.nn.functional.one_hot(scores.argmax(-1), 7).double()
    y = one_hot + soft - soft.detach() if hard else soft
    p = logits.softmax(-1)
    kl = (p * (p * 7).log()).sum(-1).mean()
    expected = y @ quantizer.codes
    torch.testing.assert_close(result.quantized, expected)
    torch.testing.assert_close(result.losses["kl"], kl)
    torch.testing.assert_close(result.loss, 0.5 * kl)
    assert torch.equal(result.indices, scores.argmax(-1))
    for value, other in zip(
        torch.autograd.grad((result.quantized * weight).sum() + result.loss, inputs),
        torch.autograd.grad((expected * weight).sum() + 0.5 * kl, inputs),
    ):
        torch.testing.assert_close(value, other)


def test_codes_are_drawn_with_the_predicted_probabilities():
    quantizer = GumbelQuantizer(2, 5)
    x = torch.randn(1, 2)
    probabilities = quantizer.project_in(x).softmax(-1)[0]
    counts = quantizer(x.expand(20000, 2)).counts
    torch.testing.assert_close(counts / 20000, probabilities, rtol=0, atol=0.015)
    assert (quantizer.eval()(x.expand(50, 2)).indices == probabilities.argmax()).all()


def test_the_divergence_is_between_zero_and_log_k():
    quantizer = GumbelQuantizer(3, 16)
    with torch.no_grad():
        quantizer.project_in.weight.zero_(), quantizer.project_in.bias.zero_()
        assert abs(quantizer(torch.randn(9, 3)).losses["kl"].item()) < 1e-6
        quantizer.project_in.bias[3] = 1000
        assert math.isclose(quantizer(torch.randn(9, 3)).losses["kl"].item(), math.log(16), rel_tol=1e-6)


def test_the_temperature_may_change_at_any_time():
    quantizer, x = GumbelQuantizer(4, 8, hard=False), torch.randn(30, 4)
    quantizer.temperature = 1e-3
    result = quantizer(x)
    torch.testing.assert_close(result.quantized, quantizer.codes[result.indices], rtol=1e-2, atol=1e-2)


def test_round_trip(variant):
    quantizer = GumbelQuantizer(6, 9, **variant)
    x, mask = torch.randn(3, 7, 6), torch.rand(3, 7) > 0.3
    for mode in (True, False):
        quantized, indices, loss = result = quantizer.train(mode)(x, mask)
        assert quantized.shape == (3, 7, quantizer.codebook_dim) and loss.ndim == 0
        assert not quantized[~mask].any() and (indices[~mask] == -1).all() and (indices[mask] >= 0).all()
        assert torch.equal(result.counts, torch.bincount(indices[mask], minlength=9))
        if quantizer.hard or not mode:
            assert torch.equal(quantizer.decode(indices), quantized)
    assert torch.equal(quantizer.encode(x, mask), indices)
    assert quantizer.codebook_sizes == (9,) and quantizer.selections == (1,)


def test_channel_first_is_a_change_of_layout(variant):
    last = GumbelQuantizer(6, 9, **variant).eval()
    first = copy.deepcopy(last)
    first.channel_first = True
    x = torch.randn(2, 4, 5, 6)
    a, b = last(x), first(x.movedim(-1, 1))
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(first.decode(b.indices), b.quantized)


def test_a_row_that_is_not_finite_is_a_masked_row(variant):
    quantizer = GumbelQuantizer(6, 9, **variant)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(50, 6)
    mask = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 7, 8]), False)
    bad = x.clone()
    bad[3, 1], bad[7, 0], bad[8] = torch.nan, torch.inf, -torch.inf
    x.requires_grad_(), bad.requires_grad_()
    found = []
    for model, rows, keep in ((quantizer, bad, None), (twin, x, mask)):
        torch.manual_seed(5)
        result = model(rows, keep)
        (result.loss + result.quantized.square().sum()).backward()
        found.append([*result, result.counts, rows.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))
    assert not bad.grad[~mask].any()
    assert quantizer(x, torch.zeros(50, dtype=torch.bool)).loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(variant, dtype):
    quantizer = GumbelQuantizer(6, 9, **variant).to(dtype).eval()
    x = torch.randn(30, 6, dtype=dtype)
    result = quantizer(x)
    assert result.quantized.dtype == dtype and result.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), result.quantized)


def test_under_autocast_eval_agrees_with_decode():
    quantizer, x = GumbelQuantizer(6, 9).eval(), torch.randn(30, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(x)
        assert torch.equal(quantizer.encode(x), result.indices)
    assert torch.equal(quantizer.decode(result.indices), result.quantized) and result.loss.dtype == torch.float32


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6)])
def test_single_and_empty(variant, shape):
    quantizer = GumbelQuantizer(6, 9, **variant)
    result = quantizer(torch.randn(shape))
    assert result.quantized.shape == (*shape[:-1], quantizer.codebook_dim) and result.indices.shape == shape[:-1] and result.loss.isfinite()


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(variant, training):
    torch._dynamo.reset()
    quantizer = GumbelQuantizer(6, 9, **variant).train(training)
    x = torch.randn(20, 6)
    torch.manual_seed(0)
    expected = quantizer(x)
    torch.manual_seed(0)
    result = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(result.indices, expected.indices)
    torch.testing.assert_close(result.loss, expected.loss)
    (result.loss + result.quantized.sum()).backward()


@pytest.mark.parametrize("name, value", [("dim", 0), ("codebook_size", 0), ("codebook_dim", 0), ("temperature", 0)])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: .*{value}"):
        GumbelQuantizer(**{"dim": 4, "codebook_size": 8} | {name: value})


def test_bad_input_is_named():
    quantizer = GumbelQuantizer(4, 8)
    with pytest.raises(ValueError, match="x: expected floating point .*D = 4"):
        quantizer(torch.randn(3, 5))
    with pytest.raises(ValueError, match="mask: expected bool"):
        quantizer(torch.randn(3, 4), torch.ones(3))
    with pytest.raises(IndexError, match="indices: .*8"):
        quantizer.decode(torch.tensor([8]))
