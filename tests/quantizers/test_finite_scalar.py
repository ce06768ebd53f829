"""FSQ: levels and their order, gradients of the bound, noise, and what a mask, a dtype or bad input may not do."""

import copy
import itertools

import pytest
import torch

from vqkit.quantizers import FiniteScalarQuantizer

VARIANTS = {
    "plain": dict(levels=[8, 5, 5]),
    "symmetric": dict(levels=[2, 4, 5], preserve_symmetry=True),
    "clamp": dict(levels=[8, 5, 5], bound="clamp"),
    "projected": dict(levels=[4, 3], dim=7),
    "several": dict(levels=[4, 3], dim=9, num_codebooks=3),
    "rotated": dict(levels=[5, 5, 5], orthogonal_rotation=True),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


def bounded(z, levels, symmetric, clamp):
    """The published formulas in float64, one number after the other."""
    levels = torch.tensor(levels, dtype=torch.float64)
    squash, inverse = (lambda v: v.clamp(-1, 1), lambda v: v) if clamp else (torch.tanh, torch.atanh)
    if symmetric:
        return 2 / (levels - 1) * ((levels - 1) * (squash(z) + 1) / 2 + 0.5).floor() - 1, 2 / (levels - 1) * (levels - 1) * squash(z) / 2
    half, offset = (levels - 1) * 1.001 / 2, (levels + 1) % 2 / 2
    smooth = squash(z + inverse(offset / half)) * half - offset
    return smooth.round() / (levels // 2), smooth / (levels // 2)


@pytest.mark.parametrize("name", ["plain", "symmetric", "clamp"])
def test_values_and_gradients_follow_the_formula(name):
    options = VARIANTS[name]
    quantizer = FiniteScalarQuantizer(**options)
    x = torch.randn(200, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    value, smooth = bounded(x, options["levels"], name == "symmetric", name == "clamp")
    (expected,) = torch.autograd.grad((smooth * weight).sum(), x)
    result = quantizer(x)
    torch.testing.assert_close(result.quantized, value.detach(), rtol=1e-14, atol=1e-14)
    (gradient,) = torch.autograd.grad((result.quantized * weight).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert float(result.loss) == 0 and result.losses == {}


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_first_number_changes_fastest(symmetric):
    quantizer = FiniteScalarQuantizer([4, 3, 5], preserve_symmetry=symmetric)
    assert quantizer.codebook_size == 60
    order = [list(reversed(levels)) for levels in itertools.product(range(5), range(3), range(4))]
    assert quantizer.level_indices(torch.arange(60)).tolist() == order
    codes = quantizer.codes
    assert codes.shape == (60, 3) and len(codes.unique(dim=0)) == 60 and codes.abs().max() <= 1
    assert codes[0].tolist() == [-1, -1, -1]
    steps = codes[:4, 0].diff()
    torch.testing.assert_close(steps, steps[:1].expand(3))
    # Every code is a fixed point: it lies on the level that it stands for.
    span = torch.linspace(-4, 4, 4001)[:, None].expand(-1, 3)
    found = quantizer.level_indices(quantizer.encode(span))
    assert [len(column.unique()) for column in found.T] == [4, 3, 5] and bool((found.diff(dim=0) >= 0).all())


def test_many_levels_stay_in_range():
    quantizer = FiniteScalarQuantizer([5001, 3])
    indices = quantizer.encode(torch.tensor([[50.0, 50], [-50, -50], [0, 0]]))
    assert quantizer.level_indices(indices).tolist() == [[5000, 2], [0, 0], [2500, 1]]


def test_round_trip_in_both_modes(variant):
    quantizer = FiniteScalarQuantizer(**variant)
    x, mask = torch.randn(3, 7, quantizer.dim), torch.rand(3, 7) > 0.3
    for mode in (True, False):
        quantized, indices, loss = result = quantizer.train(mode)(x, mask)
        assert quantized.shape == x.shape and loss.ndim == 0
        assert torch.equal(quantizer.encode(x, mask), indices) and torch.equal(quantizer.decode(indices), quantized)
        assert not quantized[~mask].any() and (indices[~mask] == -1).all() and (indices[mask] >= 0).all()
        assert int(result.counts.sum()) == (indices >= 0).sum()
    assert indices.shape == (3, 7, *(3,) * (quantizer.num_codebooks == 3)) and indices.dtype == torch.int64
    assert quantizer.codebook_sizes == (quantizer.codebook_size,) * quantizer.num_codebooks
    assert quantizer.selections == (1,) * quantizer.num_codebooks


def test_channel_first_is_a_change_of_layout(variant):
    last = FiniteScalarQuantizer(**variant)
    first = copy.deepcopy(last)
    first.channel_first = True
    x, mask = torch.randn(2, 4, 5, last.dim), torch.rand(2, 4, 5) > 0.2
    a, b = last(x, mask), first(x.movedim(-1, 1), mask)
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices)
    assert torch.equal(first.decode(b.indices), b.quantized)


def test_a_row_that_is_not_finite_is_a_masked_row(variant):
    quantizer = FiniteScalarQuantizer(**variant)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(50, quantizer.dim)
    mask = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 7, 8]), False)
    bad = x.clone()
    bad[3, 1], bad[7, 0], bad[8] = torch.nan, torch.inf, -torch.inf
    x.requires_grad_(), bad.requires_grad_()
    found = []
    for model, rows, keep in ((quantizer, bad, None), (twin, x, mask)):
        result = model(rows, keep)
        result.quantized.square().sum().backward()
        found.append([*result, result.counts, rows.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))
    assert not bad.grad[~mask].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(variant, dtype):
    quantizer = FiniteScalarQuantizer(**variant).to(dtype)
    x = torch.randn(30, quantizer.dim, dtype=dtype)
    result = quantizer(x)
    assert result.quantized.dtype == dtype and torch.equal(quantizer.decode(result.indices), result.quantized)
    if isinstance(quantizer.project_in, torch.nn.Identity) and quantizer.rotation is None:
        wide = FiniteScalarQuantizer(**variant)(x.to(torch.promote_types(dtype, torch.float32)))
        assert torch.equal(wide.indices, result.indices), "rounded in float32 or better"


def test_autocast_rounds_in_float32():
    quantizer = FiniteScalarQuantizer([8, 8, 8], orthogonal_rotation=True)
    x = torch.randn(500, 3)
    expected = quantizer.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x), expected)


def test_noise_replaces_its_share_in_training_only():
    quantizer = FiniteScalarQuantizer([5, 5], noise_dropout=0.25)
    still = FiniteScalarQuantizer([5, 5])
    x = torch.randn(20000, 2, requires_grad=True)
    result, expected = quantizer(x), still(x)
    assert torch.equal(result.indices, expected.indices)
    noisy = result.quantized != expected.quantized
    assert 0.22 < float(noisy.float().mean()) < 0.28
    # Two steps a unit: noise is a quarter to both sides of the bounded value, which here is tanh(x) times 1.001.
    difference = (result.quantized - torch.tanh(x) * 1.001)[noisy].detach()
    assert 0.24 < float(difference.abs().max()) <= 0.25 + 1e-5 and abs(float(difference.mean())) < 0.01
    (gradient,) = torch.autograd.grad(result.quantized.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.quantized.sum(), x)[0])
    assert torch.equal(quantizer.eval()(x).quantized, expected.quantized)


def test_nothing_is_counted_above_a_million_codes():
    quantizer = FiniteScalarQuantizer([8] * 7)
    result = quantizer(torch.randn(10, 7))
    assert result.counts is None and torch.equal(quantizer.decode(result.indices), result.quantized)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3)])
def test_single_and_empty(shape):
    quantizer = FiniteScalarQuantizer([4, 5, 6])
    result = quantizer(torch.randn(shape))
    assert result.quantized.shape == shape and result.indices.shape == shape[:-1]
    assert torch.equal(quantizer.decode(result.indices), result.quantized)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(training):
    torch._dynamo.reset()
    quantizer = FiniteScalarQuantizer([4, 5, 6], dim=8, noise_dropout=0.5 * training).train(training)
    x = torch.randn(20, 8, requires_grad=True)
    result = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    result.quantized.sum().backward()
    assert torch.equal(result.indices, quantizer.encode(x)) and x.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(levels=[]), "levels: .*got \\[\\]"),
        (dict(levels=[4, 2]), "levels: .*at least 3.*\\[4, 2\\]"),
        (dict(levels=[4, 1], preserve_symmetry=True), "levels: .*at least 2"),
        (dict(levels=[4], bound="relu"), "bound: .*'relu'"),
        (dict(levels=[4], noise_dropout=1.5), "noise_dropout: .*1.5"),
        (dict(levels=[4], num_codebooks=0), "num_codebooks: .*0"),
        (dict(levels=[4], dim=0), "dim: .*0"),
        (dict(levels=[4, 4], dim=3, projections=False), "dim: expected 2.*3"),
        (dict(levels=[1024] * 7), "codebook_size: .*2\\*\\*62"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FiniteScalarQuantizer(**options)


def test_bad_input_is_named():
    quantizer = FiniteScalarQuantizer([4, 5], num_codebooks=2)
    for x in (torch.randn(3, 5), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="x: expected floating point .*D = 4"):
            quantizer(x)
    with pytest.raises(ValueError, match=r"mask: expected bool of shape \(3,\)"):
        quantizer(torch.randn(3, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="indices: expected a last dimension of 2"):
        quantizer.decode(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(IndexError, match="indices: .*20"):
        quantizer.decode(torch.full((1, 2), 20))
    with pytest.raises(ValueError, match="x: expected torch.float32 as the layer"):
        FiniteScalarQuantizer([4, 5], dim=3)(torch.randn(2, 3).double())
