"""LFQ and BSQ: signs, bit order, entropies against their definition, gradients, masks, ranks, bad input."""

import copy

import pytest
import torch

from vqkit.quantizers import LookupFreeQuantizer

VARIANTS = {
    "plain": dict(dim=4),
    "sphere": dict(dim=4, spherical=True),
    "projected": dict(dim=7, codebook_size=32),
    "several": dict(dim=6, codebook_size=4, num_codebooks=3, commitment_weight=0.25),
    "rotated, clamped": dict(dim=4, orthogonal_rotation=True, soft_clamp=2.0),
    "per bit": dict(dim=4, batch_entropy="per_bit", spherical=True),
    "floor": dict(dim=4, probability_floor=1e-5),
    "some rows": dict(dim=4, frac_per_sample_entropy=0.5),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


def definition(latents, codes, tau, floor=0.0):
    """Both entropies of latents (N, C, d) from all N x K probabilities, in their dtype."""
    p = (2 * tau * latents @ codes.T).softmax(-1)
    entropy = lambda q: -(q * q.clamp(min=max(floor, 1e-300)).log()).sum(-1)
    return entropy(p).mean(), entropy(p.mean(0)).mean()


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("tau", [0.3, 2.0, 100.0])
@pytest.mark.parametrize("bits, codebooks", [(1, 1), (5, 1), (4, 3)])
@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_entropies_and_their_gradients_equal_the_definition(spherical, tau, bits, codebooks, floor, monkeypatch):
    monkeypatch.setattr("vqkit.quantizers.lookup_free._CHUNK", 2**7)
    quantizer = LookupFreeQuantizer(
        codebook_size=2**bits, num_codebooks=codebooks, spherical=spherical, inv_temperature=tau, codebook_scale=0.7,
        commitment_weight=0.25, diversity_gamma=0.6, probability_floor=floor,
    )
    x = (0.4 * torch.randn(60, bits * codebooks, dtype=torch.float64)).requires_grad_()
    result = quantizer(x)
    latents = x.view(60, codebooks, bits)
    latents = torch.nn.functional.normalize(latents, dim=-1) * 0.7 if spherical else latents
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1).double() * 2 - 1
    codes *= 0.7 / bits**0.5 if spherical else 0.7
    torch.testing.assert_close(quantizer.codes.double(), codes, rtol=1e-6, atol=1e-6)
    each, batch = definition(latents, codes, tau, floor)
    nearest = torch.cdist(latents, codes).argmin(-1)
    commitment = (latents - codes[nearest]).square().mean()
    expected = 0.1 * (each - 0.6 * batch) + 0.25 * commitment
    assert torch.equal(result.indices.view(60, codebooks), nearest), "the sign is the nearest code"
    for name, value in (("per_sample_entropy", each), ("batch_entropy", batch), ("commitment", commitment)):
        torch.testing.assert_close(result.losses[name], value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (result.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_straight_through_gradient():
    quantizer = LookupFreeQuantizer(3, entropy_weight=0)
    x = torch.randn(20, 3, requires_grad=True)
    result = quantizer(x)
    weight = torch.randn(20, 3)
    (result.quantized * weight).sum().backward()
    assert torch.equal(x.grad, weight) and torch.equal(result.quantized, x.detach().sign())
    bent = LookupFreeQuantizer(3, entropy_weight=0, activation=torch.nn.Tanh())
    (gradient,) = torch.autograd.grad((bent(x).quantized * weight).sum(), x)
    torch.testing.assert_close(gradient, weight * (1 - x.detach().tanh().square()))


def test_the_first_number_is_the_most_significant_bit_and_zero_is_negative():
    quantizer = LookupFreeQuantizer(3)
    x = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [0, 1, 0]])
    assert quantizer.encode(x).tolist() == [4, 1, 2]
    assert quantizer.decode(torch.tensor([4, 1, -1])).tolist() == [[1, -1, -1], [-1, -1, 1], [0, 0, 0]]


def test_codes_on_the_sphere_have_the_length_of_the_scale():
    quantizer = LookupFreeQuantizer(5, spherical=True, codebook_scale=0.5)
    torch.testing.assert_close(quantizer(torch.randn(9, 5)).quantized.norm(dim=-1), torch.full((9,), 0.5))
    torch.testing.assert_close(quantizer.codes.norm(dim=-1), torch.full((32,), 0.5))


def test_per_bit_is_an_upper_bound_and_exact_for_independent_bits():
    x = torch.randn(300, 6)
    kinds = [LookupFreeQuantizer(6, inv_temperature=1, batch_entropy=name) for name in ("exact", "per_bit")]
    exact, bound = (kind(x).losses["batch_entropy"] for kind in kinds)
    assert exact < bound <= 6 * torch.log(torch.tensor(2.0)) + 1e-5
    exact, bound = (kind(kind.codes).losses["batch_entropy"] for kind in kinds)
    torch.testing.assert_close(exact, bound)


def test_many_codes_still_have_a_gradient_for_diversity():
    """Below the floor of other code every code of 2^18 counts alike; here none does."""
    x = (0.05 * torch.randn(64, 18)).requires_grad_()
    found = []
    for floor in (0.0, 1e-5):
        quantizer = LookupFreeQuantizer(18, inv_temperature=1, probability_floor=floor)
        found.append(torch.autograd.grad(quantizer(x).losses["batch_entropy"], x)[0].norm())
    assert found[0] > 100 * found[1]


def test_thirty_six_bits():
    quantizer = LookupFreeQuantizer(36, spherical=True, batch_entropy="per_bit")
    x = torch.randn(20, 36, requires_grad=True)
    result = quantizer(x)
    result.loss.backward()
    assert result.counts is None and x.grad.isfinite().all() and torch.equal(quantizer.decode(result.indices), result.quantized)


def test_confident_rows_give_finite_gradients(variant):
    quantizer = LookupFreeQuantizer(**(variant | dict(inv_temperature=1e4)))
    x = (100 * torch.randn(30, quantizer.dim)).requires_grad_()
    result = quantizer(x)
    (result.loss + result.quantized.sum()).backward()
    assert result.loss.isfinite() and x.grad.isfinite().all()


def test_round_trip_in_both_modes(variant):
    quantizer = LookupFreeQuantizer(**variant)
    x, mask = torch.randn(3, 7, quantizer.dim), torch.rand(3, 7) > 0.3
    for mode in (True, False):
        quantized, indices, loss = result = quantizer.train(mode)(x, mask)
        assert quantized.shape == x.shape and loss.ndim == 0
        assert torch.equal(quantizer.encode(x, mask), indices) and torch.equal(quantizer.decode(indices), quantized)
        assert not quantized[~mask].any() and (indices[~mask] == -1).all() and (indices[mask] >= 0).all()
        assert int(result.counts.sum()) == (indices >= 0).sum()
        assert ("batch_entropy" in result.losses) == mode, "entropies are of training"


def test_channel_first_is_a_change_of_layout(variant):
    last = LookupFreeQuantizer(**variant).eval()
    first = copy.deepcopy(last)
    first.channel_first = True
    x = torch.randn(2, 4, 5, last.dim)
    a, b = last(x), first(x.movedim(-1, 1))
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(first.decode(b.indices), b.quantized)


def test_a_mask_leaves_rows_out(variant):
    quantizer = LookupFreeQuantizer(**variant)
    if quantizer.frac_per_sample_entropy < 1:
        pytest.skip("looks at other rows")
    x = torch.randn(40, quantizer.dim)
    mask = torch.rand(40) > 0.4
    a, b = quantizer(torch.where(mask[:, None], x, 1e6), mask), quantizer(x[mask])
    for name in a.losses:
        torch.testing.assert_close(a.losses[name], b.losses[name])
    assert torch.equal(a.counts, b.counts)
    nothing = quantizer(x, torch.zeros(40, dtype=torch.bool))
    assert nothing.loss.item() == 0


def test_a_row_that_is_not_finite_is_a_masked_row(variant):
    quantizer = LookupFreeQuantizer(**variant)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(50, quantizer.dim)
    mask = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 7, 8]), False)
    bad = x.clone()
    bad[3, 1], bad[7, 0], bad[8] = torch.nan, torch.inf, -torch.inf
    x.requires_grad_(), bad.requires_grad_()
    found = []
    for model, rows, keep in ((quantizer, bad, None), (twin, x, mask)):
        torch.manual_seed(5)
        result = model(rows, keep)
        (result.loss + result.quantized.square().sum()).backward()
        found.append([*result, result.counts, *result.losses.values(), rows.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))
    assert not bad.grad[~mask].any()


def test_a_share_of_the_rows_is_drawn_anew():
    quantizer, x = LookupFreeQuantizer(4, frac_per_sample_entropy=0.25, inv_temperature=1), torch.randn(400, 4)
    values = torch.stack([quantizer(x).losses["per_sample_entropy"] for _ in range(40)])
    whole = LookupFreeQuantizer(4, inv_temperature=1)(x).losses["per_sample_entropy"]
    assert len(values.unique()) > 30 and abs(float(values.mean() - whole)) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(variant, dtype):
    quantizer = LookupFreeQuantizer(**variant).to(dtype)
    x = torch.randn(30, quantizer.dim, dtype=dtype, requires_grad=True)
    result = quantizer(x)
    (result.loss + result.quantized.sum()).backward()
    assert result.quantized.dtype == dtype and result.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(quantizer.decode(result.indices), result.quantized)


def test_autocast_computes_entropies_in_float32():
    quantizer, x = LookupFreeQuantizer(6, inv_temperature=1), torch.randn(200, 6)
    expected = quantizer(x).losses
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(x).losses
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(variant, training):
    torch._dynamo.reset()
    quantizer = LookupFreeQuantizer(**variant).train(training)
    x = torch.randn(20, quantizer.dim, requires_grad=True)
    result = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    (result.loss + result.quantized.sum()).backward()
    assert torch.equal(result.indices, quantizer.encode(x)) and x.grad.isfinite().all()
    if quantizer.frac_per_sample_entropy == 1:
        torch.testing.assert_close(result.loss, quantizer(x).loss)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_single_and_empty(shape, floor):
    quantizer = LookupFreeQuantizer(3, probability_floor=floor)
    result = quantizer(torch.randn(shape))
    assert result.quantized.shape == shape and result.indices.shape == shape[:-1] and result.loss.isfinite()
    assert torch.equal(quantizer.decode(result.indices), result.quantized)


_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from vqkit.quantizers import LookupFreeQuantizer

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
batch = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
for kind in ("exact", "per_bit"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), LookupFreeQuantizer(4, inv_temperature=2, batch_entropy=kind))
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    result = wrapped(batch[rank])
    result.loss.backward()
    torch.save([result.losses["batch_entropy"].detach(), *(p.grad for p in model.parameters())], f"{sys.argv[1]}/{kind}{rank}.pt")
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_two_ranks_equal_one(tmp_path, two_ranks):
    two_ranks(_PROGRAM)
    batch = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1)).view(60, 5)
    for kind in ("exact", "per_bit"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), LookupFreeQuantizer(4, inv_temperature=2, batch_entropy=kind))
        alone = model(batch)
        alone.loss.backward()
        expected = [alone.losses["batch_entropy"].detach(), *(p.grad for p in model.parameters())]
        for rank in (0, 1):
            for found, value in zip(torch.load(tmp_path / f"{kind}{rank}.pt"), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "codebook_size: .*None"),
        (dict(codebook_size=12), "codebook_size: .*power of 2.*12"),
        (dict(codebook_size=1), "codebook_size: .*1"),
        (dict(dim=4, frac_per_sample_entropy=0), "frac_per_sample_entropy: .*0"),
        (dict(dim=4, batch_entropy="none"), "batch_entropy: .*'none'"),
        (dict(dim=36), "batch_entropy: expected 'per_bit'"),
        (dict(dim=36, batch_entropy="per_bit", probability_floor=1e-5), "probability_floor 0"),
        (dict(dim=4, codebook_scale=0), "codebook_scale: .*0"),
        (dict(dim=4, soft_clamp=0.5), "soft_clamp: .*0.5"),
        (dict(dim=5, codebook_size=16, projections=False), "dim: expected 4.*5"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LookupFreeQuantizer(**options)
