"""taming's quantizers against the published formulas: the same numbers, gradients, state keys and index conventions."""

import inspect

import numpy as np
import pytest
import torch

from tests.compat.foreign import FOREIGN
from vqkit.compat import taming

LATENTS = (3, 6, 4, 5)


@pytest.fixture
def used(tmp_path):
    np.save(tmp_path / "used.npy", np.array([5, 1, 17, 9, 2, 3, 11]))
    return str(tmp_path / "used.npy")


@pytest.mark.parametrize("options", [{}, {"legacy": False}, {"sane_index_shape": True}], ids=str)
def test_vector_quantizer_2(options, assert_same):
    theirs, ours = FOREIGN.taming(20, 6, 0.25, **options), taming.VectorQuantizer2(20, 6, 0.25, **options)
    assert_same(theirs, ours, torch.randn(LATENTS))
    assert list(dict(ours.named_parameters())) == ["embedding.weight"]


def test_the_factor_of_each_term():
    z = torch.randn(LATENTS, requires_grad=True)
    for legacy, factor in ((True, 1.0), (False, 0.25)):
        ours = taming.VectorQuantizer2(20, 6, 0.25, legacy=legacy)
        (gradient,) = torch.autograd.grad(ours(z)[1], z)
        error = z.detach() - ours(z)[0].detach()
        torch.testing.assert_close(gradient, factor * 2 * error / z.numel())


@pytest.mark.parametrize("unknown", ["extra", 3])
@pytest.mark.parametrize("sane", [False, True])
def test_remap(unknown, sane, used, assert_same):
    options = dict(remap=used, unknown_index=unknown, sane_index_shape=sane)
    theirs, ours = FOREIGN.taming(20, 6, 0.25, **options), taming.VectorQuantizer2(20, 6, 0.25, **options)
    assert_same(theirs, ours, torch.randn(LATENTS))
    assert ours.re_embed == theirs.re_embed


def test_remap_there_and_back(used):
    quantizer = taming.VectorQuantizer2(20, 6, 0.25, remap=used, unknown_index="extra")
    indices = torch.tensor([[5, 3, 0], [11, -1, 19]])
    places = quantizer.remap_to_used(indices)
    assert places.tolist() == [[0, 5, 7], [6, -1, 7]]
    kept = places.clone()
    assert quantizer.unmap_to_all(places).tolist() == [[5, 3, 5], [11, -1, 5]] and torch.equal(places, kept)
    assert torch.equal(quantizer.embed_code(places)[0, 1], quantizer.embedding.weight[3])
    assert not quantizer.embed_code(places)[1, 1].any()


def test_unknown_indices_are_drawn_among_the_used(used):
    quantizer = taming.VectorQuantizer2(20, 6, 0.25, remap=used)
    places = quantizer.remap_to_used(torch.full((500,), 4))
    assert set(places.tolist()) == set(range(7))


def test_codebook_entries():
    quantizer = taming.VectorQuantizer2(20, 6, 0.25)
    z_q, _, (_, _, indices) = quantizer(torch.randn(LATENTS))
    entry = quantizer.get_codebook_entry(indices, (3, 4, 5, 6))
    assert torch.equal(entry, z_q) and entry.requires_grad
    assert torch.equal(quantizer.get_codebook_entry(indices, None), quantizer.embed_code(indices))


@pytest.mark.parametrize(("name", "value"), [("temp", 0.5), ("rescale_logits", True), ("return_logits", True)])
def test_arguments_of_gumbel_are_refused(name, value):
    quantizer = taming.VectorQuantizer2(20, 6, 0.25)
    with pytest.raises(NotImplementedError, match=name):
        quantizer(torch.randn(LATENTS), **{name: value})
    quantizer(torch.randn(LATENTS), temp=1.0)


def test_unknown_index_must_mean_something():
    with pytest.raises(ValueError, match="unknown_index.*'any'"):
        taming.VectorQuantizer2(20, 6, 0.25, unknown_index="any")


def test_vector_quantizer(assert_same):
    theirs, ours = FOREIGN.taming_first(20, 6, 0.25), taming.VectorQuantizer(20, 6, 0.25)
    assert_same(theirs, ours, torch.randn(LATENTS))
    z_q, _, (_, one_hot, indices) = ours(torch.randn(LATENTS))
    assert one_hot.is_sparse and torch.equal(ours.get_codebook_entry(indices, (3, 4, 5, 6)), z_q)


@pytest.mark.parametrize("options", [{}, {"straight_through": False, "temp_init": 0.5}, {"kl_weight": 0.1}], ids=str)
def test_gumbel_draws_the_same_codes(options, assert_same):
    assert_same(FOREIGN.gumbel(5, 6, 20, **options), taming.GumbelQuantize(5, 6, 20, **options), torch.randn(3, 5, 4, 4))


def test_gumbel_with_remap(used, assert_same):
    options = dict(remap=used, unknown_index=0)
    ours = taming.GumbelQuantize(5, 6, 20, **options)
    assert_same(FOREIGN.gumbel(5, 6, 20, **options), ours, torch.randn(3, 5, 4, 4))
    z_q, _, (_, _, indices), logits = ours.eval()(torch.randn(3, 5, 4, 4), return_logits=True)
    assert logits.shape == (3, 7, 4, 4)
    torch.testing.assert_close(ours.get_codebook_entry(indices.flatten(), (3, 4, 4, 6)), z_q)


def test_gumbel_without_the_interface():
    z_q, loss, indices = taming.GumbelQuantize(5, 6, 20, use_vqinterface=False)(torch.randn(3, 5, 4, 4))
    assert z_q.shape == (3, 6, 4, 4) and indices.shape == (3, 4, 4) and loss.ndim == 0


def test_ema_vector_quantizer(assert_same):
    theirs, ours = FOREIGN.taming_ema(20, 6, 0.25), taming.EMAVectorQuantizer(20, 6, 0.25)
    assert_same(theirs, ours, torch.randn(LATENTS))
    assert ours.embedding.weight.shape == (20, 6)


def test_ema_vector_quantizer_with_remap(used, assert_same):
    options = dict(remap=used, unknown_index=2)
    assert_same(FOREIGN.taming_ema(20, 6, 0.25, **options), taming.EMAVectorQuantizer(20, 6, 0.25, **options), torch.randn(LATENTS))


def test_constructors_have_the_defaults_of_the_library():
    def defaults(cls):
        return {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}

    assert defaults(taming.VectorQuantizer2) == dict(remap=None, unknown_index="random", sane_index_shape=False, legacy=True)
    assert defaults(taming.GumbelQuantize) == dict(
        straight_through=True, kl_weight=5e-4, temp_init=1.0, use_vqinterface=True, remap=None, unknown_index="random"
    )
    assert defaults(taming.EMAVectorQuantizer) == dict(decay=0.99, eps=1e-5, remap=None, unknown_index="random")


CLASSES = [taming.VectorQuantizer, taming.VectorQuantizer2, taming.EMAVectorQuantizer]


@pytest.mark.parametrize("build", CLASSES)
def test_a_row_that_is_not_finite_teaches_nothing(build):
    quantizer = build(20, 6, 0.25)
    z = torch.randn(LATENTS)
    z[1, 2, 3, 4] = torch.nan
    z.requires_grad_()
    z_q, loss, (_, _, indices) = quantizer(z)
    loss.backward()
    assert (indices < 0).sum() == 1 and not z_q[1, :, 3, 4].any() and loss.isfinite()
    assert all(value.isfinite().all() for value in (*quantizer.state_dict().values(), *(p.grad for p in quantizer.parameters())))


def test_a_compiled_graph_has_no_one_hot():
    torch.compiler.reset()
    quantizer = taming.VectorQuantizer(20, 6, 0.25)
    assert torch.compile(quantizer, fullgraph=True, backend="eager")(torch.randn(LATENTS))[2][1] is None


def test_statistics_stay_in_float32_and_latents_in_bfloat16():
    quantizer = taming.EMAVectorQuantizer(20, 6, 0.25).to(torch.bfloat16)
    z_q, _, _ = quantizer(torch.randn(LATENTS, dtype=torch.bfloat16))
    assert z_q.dtype == torch.bfloat16 and quantizer.state_dict()["embedding.embed_avg"].dtype == torch.float32
