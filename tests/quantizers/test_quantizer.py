"""The drop-in quantizer: what it returns, what learns, what a mask, a dtype or a bad row may not do."""

import copy
import math
import shutil

import pytest
import torch

import vqkit
from vqkit.codebooks import EMACodebook, LearnedCodebook, SuppliedCodebook

VARIANTS = {
    "ema": {},
    "learned": dict(codebook="learned"),
    "cosine": dict(metric="cosine"),
    "learned cosine": dict(codebook="learned", metric="cosine"),
    "rotation": dict(gradient="rotation"),
    "k-means": dict(kmeans_init=True),
    "dead codes": dict(threshold_ema_dead_code=2),
    "learned dead codes": dict(codebook="learned", kmeans_init=True, threshold_ema_dead_code=2),
    "factorised": dict(codebook_dim=4, metric="cosine"),
    "heads": dict(heads=2, codebook_dim=6),
    "top 3": dict(top_k=3),
    "anchored": dict(codebook="anchored"),
    "linear": dict(codebook="linear"),
    "linear cosine": dict(codebook="linear", metric="cosine"),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


def test_round_trip_in_eval_mode(variant):
    quantizer = vqkit.Quantizer(12, 20, **variant).eval()
    x, mask = torch.randn(3, 7, 12), torch.rand(3, 7) > 0.3
    quantized, indices, loss = result = quantizer(x, mask)
    assert quantized.shape == x.shape and quantized is result.quantized and loss.ndim == 0
    assert torch.equal(quantizer.encode(x, mask), indices)
    assert torch.equal(quantizer.decode(indices), quantized)
    assert not quantized[~mask].any() and (indices[~mask] == -1).all() and (indices[mask] >= 0).all()


def test_train_output_is_decoded_from_the_codebook_used(variant):
    quantizer = vqkit.Quantizer(12, 20, **(variant | dict(kmeans_init=False)))
    before = copy.deepcopy(quantizer)
    quantized, indices, _ = quantizer(torch.randn(50, 12))
    assert torch.equal(before.decode(indices), quantized)


def test_channel_first_is_a_change_of_layout():
    torch.manual_seed(3)
    last = vqkit.Quantizer(6, 9)
    first = copy.deepcopy(last)
    first.channel_first = True
    x, mask = torch.randn(2, 4, 5, 6), torch.rand(2, 4, 5) > 0.2
    a, b = last(x, mask), first(x.movedim(-1, 1), mask)
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(first.decode(b.indices).movedim(1, -1), first.codes[b.indices.clamp(min=0)] * mask[..., None])


def test_losses_and_gradients_of_a_learned_codebook():
    quantizer = vqkit.Quantizer(5, 8, codebook="learned", commitment_weight=0.25)
    x = torch.randn(40, 5, requires_grad=True)
    result = quantizer(x)
    codes = quantizer.codebook.codes
    nearest = torch.cdist(x.double(), codes.double()).argmin(-1)
    error = (x - codes[nearest]).square().mean()
    assert torch.equal(result.indices, nearest)
    torch.testing.assert_close(result.losses["commitment"], error)
    torch.testing.assert_close(result.loss, 1.25 * error)
    result.loss.backward()
    torch.testing.assert_close(x.grad, 0.25 * 2 * (x - codes[nearest]).detach() / x.numel())
    chosen = torch.zeros(8).index_fill_(0, nearest, 1).bool()
    assert codes.grad[chosen].any() and not codes.grad[~chosen].any()


def test_ema_has_no_codebook_loss_and_no_gradient():
    quantizer = vqkit.Quantizer(5, 8, commitment_weight=0.5)
    result = quantizer(torch.randn(40, 5, requires_grad=True))
    assert list(result.losses) == ["commitment"]
    torch.testing.assert_close(result.loss, 0.5 * result.losses["commitment"])
    assert not list(quantizer.parameters())


def test_usage_and_perplexity():
    quantizer = vqkit.Quantizer(2, 4, codebook=LearnedCodebook(4, 2))
    with torch.no_grad():
        quantizer.codebook.codes.copy_(torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]]))
    result = quantizer(torch.tensor([[0.0, 1], [8, 0], [9, 1], [1, 0]]))
    assert result.counts.tolist() == [2, 2, 0, 0]
    assert float(result.usage) == 0.5 and math.isclose(float(result.perplexity), 2, rel_tol=1e-6)


def test_eval_mode_learns_nothing(variant):
    quantizer = vqkit.Quantizer(12, 20, **variant).eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(30, 12))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.state_dict().values()))


@pytest.mark.parametrize("kind", ["ema", "k-means", "dead codes"])
def test_a_row_that_is_not_finite_does_not_reach_the_codebook(kind):
    torch.manual_seed(1)
    quantizer = vqkit.Quantizer(12, 20, **VARIANTS[kind])
    x = torch.randn(100, 12)
    x[3, 4], x[5, 5] = torch.nan, torch.inf
    for _ in range(3):
        quantizer(x)
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


def test_a_row_that_is_not_finite_is_a_masked_row(variant):
    torch.manual_seed(4)
    quantizer = vqkit.Quantizer(12, 20, **variant)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(50, 12)
    mask = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 7, 8]), False)
    bad = x.clone()
    bad[3, 1], bad[7, 11], bad[8] = torch.nan, torch.inf, -torch.inf
    x.requires_grad_(), bad.requires_grad_()
    states = []
    for model, rows, keep in ((quantizer, bad, None), (twin, x, mask)):
        torch.manual_seed(5)
        result = model(rows, keep)
        (result.loss + result.quantized.square().sum()).backward()
        gradients = [rows.grad, *(p.grad for p in model.parameters())]
        states.append([*result, result.counts, *result.losses.values(), *gradients, *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert all(t.isfinite().all() for t in states[0])
    assert (states[0][1][~mask] == -1).all() and not states[0][0][~mask].any() and not bad.grad[~mask].any()
    assert torch.equal(quantizer.encode(bad), twin.encode(x, mask))


def test_masked_latents_do_not_reach_the_codebook():
    torch.manual_seed(2)
    masked, short = vqkit.Quantizer(6, 5), None
    short = copy.deepcopy(masked)
    x = torch.randn(30, 6)
    mask = torch.arange(30) < 20
    a, b = masked(torch.where(mask[:, None], x, 1e6), mask), short(x[:20])
    assert torch.equal(masked.codebook.codes, short.codebook.codes)
    torch.testing.assert_close(a.loss, b.loss)


def test_all_masked_batch_changes_no_code():
    quantizer = vqkit.Quantizer(6, 5, threshold_ema_dead_code=1)
    for _ in range(4):
        quantizer(torch.randn(40, 6))
    before = quantizer.codes.clone()
    result = quantizer(torch.randn(8, 6), torch.zeros(8, dtype=torch.bool))
    assert float(result.loss) == 0
    torch.testing.assert_close(quantizer.codes, before, rtol=1e-4, atol=1e-5)


def test_statistics_stay_float32():
    quantizer = vqkit.Quantizer(8, 16).to(torch.bfloat16)
    reference = vqkit.Quantizer(8, 16)
    reference.load_state_dict(quantizer.state_dict())
    x = torch.randn(64, 8).bfloat16()
    result = quantizer(x)
    assert result.quantized.dtype == torch.bfloat16
    assert {t.dtype for t in quantizer.state_dict().values() if t.is_floating_point()} == {torch.float32}
    reference(x.float())
    assert torch.equal(quantizer.codes, reference.codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_decode_returns_the_bits_and_the_dtype_of_forward(variant, dtype):
    quantizer = vqkit.Quantizer(12, 20, **variant).to(dtype).eval()
    x = torch.randn(30, 12, dtype=dtype)
    quantized = quantizer(x).quantized
    decoded = quantizer.decode(quantizer.encode(x))
    assert decoded.dtype == quantized.dtype == dtype and torch.equal(decoded, quantized)


def test_decode_in_another_dtype_and_with_given_codes():
    quantizer, x = vqkit.Quantizer(12, 20, top_k=3).eval(), torch.randn(30, 12).double()
    assert torch.equal(quantizer.decode(quantizer.encode(x), dtype=torch.float64), quantizer(x).quantized)
    supplied, codes = vqkit.Quantizer(12, 20, codebook=SuppliedCodebook(20, 12)).eval(), torch.randn(20, 12).double()
    assert torch.equal(supplied.decode(supplied.encode(x, codes=codes), codes), supplied(x, codes=codes).quantized)


def test_a_single_vector():
    quantizer = vqkit.Quantizer(8, 16).eval()
    x = torch.randn(8)
    quantized, index, _ = quantizer(x)
    assert torch.equal(quantized, quantizer(x[None]).quantized[0]) and index.ndim == 0
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantized)


def test_eval_forward_then_training_then_backward():
    quantizer, x = vqkit.Quantizer(4, 8), torch.randn(20, 4, requires_grad=True)
    kept = quantizer.eval()(x).loss
    (expected,) = torch.autograd.grad(quantizer(x).loss, x)
    quantizer.train()(x)
    assert torch.equal(torch.autograd.grad(kept, x)[0], expected)


def test_autocast_searches_in_float32():
    quantizer = vqkit.Quantizer(8, 500)
    x = torch.randn(200, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = quantizer.encode(x)
    assert torch.equal(indices, quantizer.encode(x))


def test_compiles_without_a_graph_break_in_train_and_eval(variant):
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(12, 20, **variant)
    eager = copy.deepcopy(quantizer)
    # Inductor calls a C++ compiler; whether the graph breaks does not depend on it, so one variant is enough.
    whole = variant == {} and shutil.which("c++")
    compiled = torch.compile(quantizer, fullgraph=True, backend="inductor" if whole else "aot_eager")
    x = torch.randn(4, 9, 12)
    for _ in range(2):
        torch.manual_seed(7)
        a = eager(x)
        torch.manual_seed(7)
        b = compiled(x)
        if not any(name in variant for name in ("kmeans_init", "threshold_ema_dead_code")):
            torch.testing.assert_close(a.quantized, b.quantized)
            torch.testing.assert_close(a.loss, b.loss)
        assert b.usage > 0
    assert torch.compile(quantizer.eval(), fullgraph=True, backend="aot_eager")(x).loss.isfinite()


def test_a_compiled_start_waits_for_valid_rows():
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(4, 8, kmeans_init=True)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    x, before = torch.randn(60, 4) + 9, quantizer.codes.clone()
    compiled(x, torch.zeros(60, dtype=torch.bool))
    torch.testing.assert_close(quantizer.codes, before)
    assert not quantizer.codebook.initialised
    compiled(x)
    assert quantizer.codebook.initialised and (quantizer.codes > 4).all()
    twin = copy.deepcopy(quantizer)
    compiled(x), twin(x)
    assert torch.equal(quantizer.codes, twin.codes), "it starts once"


def test_state_survives_saving_copying_and_pickling(variant, tmp_path):
    quantizer = vqkit.Quantizer(12, 20, **variant)
    quantizer(torch.randn(64, 12))
    x = torch.randn(10, 12)
    restored = vqkit.Quantizer(12, 20, **variant)
    restored.load_state_dict(quantizer.state_dict())
    torch.save(quantizer, tmp_path / "quantizer.pt")
    copies = [restored, copy.deepcopy(quantizer), torch.load(tmp_path / "quantizer.pt", weights_only=False)]
    expected = quantizer.eval()(x).quantized
    assert all(torch.equal(twin.eval()(x).quantized, expected) for twin in copies)


def test_exports_eval_mode():
    quantizer = vqkit.Quantizer(6, 9).eval()
    x = torch.randn(5, 6)
    exported = torch.export.export(quantizer, (x,)).module()
    assert torch.equal(exported(x)[0], quantizer(x).quantized)


def test_training_finds_the_clusters_and_leaves_no_code_behind():
    centres = torch.tensor([[5.0, 0], [-5, 0], [0, 5], [0, -5]])
    quantizer = vqkit.Quantizer(2, 16, threshold_ema_dead_code=1, decay=0.9)
    for _ in range(60):
        quantizer(centres[torch.randint(4, (256,))] + 0.1 * torch.randn(256, 2))
    distances = torch.cdist(centres, quantizer.codes)
    assert distances.amin(1).max() < 0.2, "a code near every cluster"
    assert distances.amin(0).max() < 1, "no code far from all clusters"


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(dim=0), ValueError, "dim: .*0"),
        (dict(metric="dot"), ValueError, "metric.*dot"),
        (dict(codebook="lfq"), ValueError, "codebook.*lfq"),
        (dict(codebook=3), TypeError, "codebook.*int"),
        (dict(codebook=LearnedCodebook(7, 6)), ValueError, "codebook: expected 5 codes of length 6, got 7"),
        (dict(gradient="gumbel"), ValueError, "gradient.*gumbel"),
        (dict(top_k=9), ValueError, "top_k.*9"),
        (dict(decay=1.5), ValueError, "decay.*1.5"),
        (dict(kmeans_init=True, kmeans_iters=0), ValueError, "kmeans_iters.*0"),
        (dict(codebook="linear", decay=0.9), ValueError, "decay: .*codebook='linear'.*no such option, got 0.9"),
        (dict(codebook="linear", kmeans_init=True), ValueError, "kmeans_init: .*codebook='linear'"),
        (dict(codebook="anchored", threshold_ema_dead_code=2), ValueError, "threshold_ema_dead_code: .*codebook='anchored'"),
        (dict(threshold_ema_dead_code=-1), ValueError, "threshold_ema_dead_code.*-1"),
        (dict(codebook=EMACodebook(5, 6), decay=0.9), ValueError, "decay: .*beside a EMACodebook.*0.9"),
        (dict(codebook=EMACodebook(5, 6), kmeans_init=True), ValueError, "kmeans_init: .*EMACodebook"),
        (dict(codebook=SuppliedCodebook(5, 6), threshold_ema_dead_code=1), ValueError, "threshold_ema_dead_code: .*SuppliedCodebook"),
        (dict(codebook=EMACodebook(5, 6), metric="cosine"), ValueError, "codebook: .*cosine=True.*got cosine=False"),
        (dict(codebook=EMACodebook(5, 6, cosine=True)), ValueError, "codebook: .*cosine=False.*got cosine=True"),
    ],
)
def test_constructor_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        vqkit.Quantizer(**(dict(dim=6, codebook_size=5) | change))


def test_a_named_codebook_gets_what_is_given_and_else_its_own():
    assert vqkit.Quantizer(6, 5).codebook.decay == 0.8 and vqkit.Quantizer(6, 5, decay=0.9).codebook.decay == 0.9
    anchored = vqkit.Quantizer(6, 5, codebook="anchored", metric="cosine").codebook
    assert anchored.decay == 0.99 and anchored.cosine
    assert vqkit.Quantizer(6, 5, codebook="anchored", decay=0.9, kmeans_init=True, kmeans_iters=3).codebook.kmeans_iters == 3


def test_call_errors_name_the_argument_and_change_nothing():
    quantizer = vqkit.Quantizer(6, 5)
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(ValueError, match="x: .*D = 6.*5"):
        quantizer(torch.randn(3, 5))
    with pytest.raises(ValueError, match="x: .*int64"):
        quantizer(torch.zeros(3, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask: .*\(3,\).*\(2,\)"):
        quantizer(torch.randn(3, 6), torch.ones(2, dtype=torch.bool))
    for call in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=r"codes: .*\(5, 6\), got \(4, 6\)"):
            call(torch.randn(3, 6), codes=torch.randn(4, 6))
    with pytest.raises(ValueError, match=r"codes: .*\(5, 6\), got \(5, 7\)"):
        quantizer.decode(torch.zeros(3, dtype=torch.int64), torch.randn(5, 7))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.state_dict().values()))


def test_a_dtype_that_the_projection_does_not_take_names_x():
    quantizer, x = vqkit.Quantizer(6, 5, codebook_dim=3), torch.randn(4, 6).bfloat16()
    with pytest.raises(ValueError, match="x: expected torch.float32 as .*, or autocast, got torch.bfloat16"):
        quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer(x).loss.isfinite()
        assert torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x).loss.isfinite()


_KINDS = [{}, dict(heads=2, codebook_dim=3), dict(top_k=2), dict(codebook="learned", metric="cosine", codebook_dim=4)]


@pytest.mark.parametrize("options", _KINDS, ids=str)
def test_indices_that_are_given_are_taken(options):
    torch.manual_seed(0)
    quantizer = vqkit.Quantizer(6, 16, **options)
    twin = copy.deepcopy(quantizer)
    x, mask = torch.randn(30, 6), torch.arange(30) < 25
    expected = twin(x, mask)
    found = quantizer(x, mask, indices=expected.indices)
    # Those that the search finds change nothing, also in what is learned.
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.quantized, expected.quantized)
    assert torch.equal(found.loss, expected.loss)
    torch.testing.assert_close(quantizer.state_dict(), twin.state_dict(), rtol=0, atol=0)
    others = torch.randint(16, expected.indices.shape)
    quantizer.eval()
    assert torch.equal(quantizer(x, indices=others).quantized, quantizer.decode(others))
    assert (quantizer(x, mask, indices=others).indices[25:] == -1).all()
    others[3] = -1
    assert not quantizer(x, indices=others).quantized[3].any()


def test_given_indices_do_not_start_the_codes():
    quantizer = vqkit.Quantizer(6, 16, kmeans_init=True)
    quantizer(torch.randn(30, 6), indices=torch.randint(16, (30,)))
    assert not quantizer.codebook.initialised


@pytest.mark.parametrize(
    "indices, error, words",
    [
        (torch.zeros(29, dtype=torch.int64), ValueError, r"indices: expected int64 of shape \(30,\), got torch.int64 \(29,\)"),
        (torch.zeros(30), ValueError, "indices: expected int64 .*float32"),
        (torch.full((30,), 16), IndexError, "indices: .*16"),
    ],
)
def test_given_indices_that_do_not_fit(indices, error, words):
    quantizer = vqkit.Quantizer(6, 16)
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(error, match=words):
        quantizer(torch.randn(30, 6), indices=indices)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
