"""Sums of codes: each stage on the residual of the one before, what reaches the encoder, dropout and sharing."""

import copy

import pytest
import torch

from vqkit.codebooks import AffineCodebook, EMACodebook, accumulate
from vqkit.quantizers.finite_scalar import FiniteScalarQuantizer
from vqkit.quantizers.lookup_free import LookupFreeQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.residual import ResidualQuantizer

VARIANTS = {
    "ema": {},
    "learned": dict(codebook="learned"),
    "cosine": dict(metric="cosine"),
    "projected": dict(codebook_dim=5),
    "different sizes": dict(codebook_size=(30, 20, 10)),
    "shared": dict(shared_codebook=True),
    "shared learned": dict(shared_codebook=True, codebook="learned", kmeans_init=True, threshold_ema_dead_code=1),
    "shared dead codes": dict(shared_codebook=True, kmeans_init=True, threshold_ema_dead_code=1),
    "rotation": dict(gradient="rotation"),
    "stages": dict(gradient="stages"),
    "dropout": dict(quantize_dropout=True),
    "beam": dict(beam_size=4),
    "beam of peers": dict(beam_size=3, beam_weights=(1, 1, 1), codebook_dim=5, metric="cosine"),
    "beam shared": dict(beam_size=3, shared_codebook=True, codebook="learned", kmeans_init=True),
    "beam in eval": dict(eval_beam_size=12),
}


def build(**change):
    return ResidualQuantizer(**(dict(dim=8, num_quantizers=3, codebook_size=20) | change))


def of_stages():
    """Stages of every kind."""
    inner = [Quantizer(8, 20), Quantizer(8, 16, codebook_dim=4, metric="cosine"), FiniteScalarQuantizer([5, 5, 5], 8)]
    return ResidualQuantizer([*inner, LookupFreeQuantizer(8, 16, commitment_weight=0.25)])


@pytest.fixture(params=[*VARIANTS, "stages of every kind"])
def make(request):
    return of_stages if request.param not in VARIANTS else lambda: build(**VARIANTS[request.param])


def test_round_trip_in_eval_mode(make):
    quantizer = make().eval()
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.3
    quantized, indices, loss = result = quantizer(x, mask)
    assert quantized.shape == x.shape and indices.shape == (3, 7, len(quantizer.quantizers)) and loss.ndim == 0
    assert torch.equal(quantizer.encode(x, mask), indices)
    assert torch.equal(quantizer.decode(indices), quantized)
    assert not quantized[~mask].any() and (indices[~mask] == -1).all() and (indices[mask] >= 0).all()
    assert len(result.parts) == len(quantizer.quantizers) == len(quantizer.codebook_sizes) == len(quantizer.selections)
    torch.testing.assert_close(quantizer.stage_losses(result).sum(), loss)
    for part, column, size in zip(result.parts, indices.unbind(-1), quantizer.codebook_sizes):
        assert torch.equal(part.indices, column)
        assert torch.equal(part.counts, torch.bincount(column[mask], minlength=size))


def test_stages_quantize_what_is_left_over():
    quantizer = build(codebook="learned", commitment_weight=0.25)
    x = torch.randn(50, 8, requires_grad=True)
    result = quantizer(x)
    residual, losses = x.detach().double(), []
    for stage, column in zip(quantizer.quantizers, result.indices.unbind(-1)):
        codes = stage.codes.detach().double()
        assert torch.equal(column, torch.cdist(residual, codes).argmin(-1))
        residual = residual - codes[column]
        losses.append(1.25 * residual.square().mean())
    torch.testing.assert_close(x.detach() - residual.float(), result.quantized.detach())
    torch.testing.assert_close(quantizer.stage_losses(result).double(), torch.stack(losses))
    torch.testing.assert_close(result.losses["commitment"] + result.losses["codebook"], (torch.stack(losses).sum() * 2 / 1.25).float())


def test_the_commitment_of_every_stage_reaches_the_encoder():
    quantizer, x = build(), torch.randn(50, 8)
    for stage in range(3):
        rows = x.clone().requires_grad_()
        result = quantizer(rows, learn=False)
        quantizer.stage_losses(result)[stage].backward()
        left = x - quantizer.decode(result.indices[:, : stage + 1])
        torch.testing.assert_close(rows.grad, 2 * left / x.numel())


@pytest.mark.parametrize("gradient, factor", [("straight_through", 1), ("stages", 3)])
def test_gradient_of_quantized(gradient, factor):
    x, weight = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8)
    (build(gradient=gradient)(x).quantized * weight).sum().backward()
    torch.testing.assert_close(x.grad, factor * weight)


def test_rotation_turns_the_whole_vector_into_the_whole_sum():
    x, weight = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8)
    quantized = build(gradient="rotation")(x).quantized
    (quantized * weight).sum().backward()
    q = quantized.detach()
    # A rotation and a scaling: lengths scale by |q| / |x|, and what was along q is along x.
    scale = q.norm(dim=-1) / x.detach().norm(dim=-1)
    torch.testing.assert_close(x.grad.norm(dim=-1), weight.norm(dim=-1) * scale)
    along = (weight * q).sum(-1) / q.norm(dim=-1) * scale
    torch.testing.assert_close((x.grad * x.detach()).sum(-1) / x.detach().norm(dim=-1), along)


def test_channel_first_is_a_change_of_layout(make):
    torch.manual_seed(3)
    last = make()
    first = copy.deepcopy(last)
    first.channel_first = True
    x, mask = torch.randn(2, 4, 5, 8), torch.rand(2, 4, 5) > 0.2
    results = []
    for quantizer, rows in ((last, x), (first, x.movedim(-1, 1))):
        torch.manual_seed(4)
        results.append(quantizer(rows, mask))
    a, b = results
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(first.decode(b.indices).movedim(1, -1), last.decode(a.indices))


def test_decode_takes_a_prefix_or_stages_left_out():
    quantizer = build(codebook_dim=5).eval()
    x = torch.randn(4, 9, 8)
    indices = quantizer.encode(x)
    for number in (1, 2, 3):
        short = quantizer(x, stages=number)
        assert (short.indices[..., number:] == -1).all() and len(short.parts) == number
        assert torch.equal(short.indices, quantizer.encode(x, stages=number))
        assert torch.equal(short.indices[..., :number], indices[..., :number])
        assert torch.equal(quantizer.decode(indices[..., :number]), short.quantized)
        assert torch.equal(quantizer.decode(short.indices), short.quantized)
        assert not quantizer.stage_losses(short)[number:].any()
    parts = quantizer.decode_stages(indices)
    assert parts.shape == (3, 4, 9, 5)
    torch.testing.assert_close(quantizer.project_out(parts.sum(0)), quantizer.decode(indices))
    middle = indices.clone()
    middle[..., 1] = -1
    torch.testing.assert_close(quantizer.decode(middle), quantizer.project_out(parts[0] + parts[2]))
    assert not quantizer.decode(torch.full((2, 3), -1)).any(), "nothing at all is zero, not the bias of the last layer"


def test_eval_mode_learns_nothing_nor_does_learn_false(make):
    quantizer = make().eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(30, 8))
    quantizer.train()(torch.randn(30, 8), learn=False, stages=2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.state_dict().values()))


def test_a_row_that_is_not_finite_is_a_masked_row(make):
    quantizer = make()
    twin = copy.deepcopy(quantizer)
    x = torch.randn(50, 8)
    mask = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor([3, 7, 8]), False)
    bad = x.clone()
    bad[3, 1], bad[7, 7], bad[8] = torch.nan, torch.inf, -torch.inf
    x.requires_grad_(), bad.requires_grad_()
    states = []
    for model, rows, keep in ((quantizer, bad, None), (twin, x, mask)):
        torch.manual_seed(5)
        for _ in range(2):
            result = model(rows, keep)
            (result.loss + result.quantized.square().sum()).backward()
        gradients = [rows.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        states.append([*result, *result.losses.values(), *gradients, *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert all(t.isfinite().all() for t in states[0])
    assert (states[0][1][~mask] == -1).all() and not states[0][0][~mask].any() and not bad.grad[~mask].any()


def test_an_all_masked_or_empty_batch(make):
    quantizer = make()
    result = quantizer(torch.randn(6, 8), torch.zeros(6, dtype=torch.bool))
    assert float(result.loss.detach()) == 0 or isinstance(quantizer.quantizers[-1], LookupFreeQuantizer)
    assert not result.quantized.any() and (result.indices == -1).all()
    assert quantizer(torch.randn(0, 8)).indices.shape == (0, len(quantizer.quantizers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(make, dtype):
    quantizer, x = make().to(dtype).eval(), torch.randn(30, 8).to(dtype)
    result = quantizer(x)
    assert result.quantized.dtype == dtype
    assert torch.equal(quantizer.decode(quantizer.encode(x)), result.quantized)
    assert quantizer.train()(x).loss.isfinite()
    assert not any(t.dtype == torch.bfloat16 for name, t in quantizer.named_buffers() if "codebook" in name)


def test_residuals_are_kept_in_float32():
    quantizer = build(num_quantizers=6, codebook_size=64, kmeans_init=True)
    x = torch.randn(400, 8).bfloat16()
    indices = quantizer(x).indices
    twin = copy.deepcopy(quantizer).eval()
    assert torch.equal(twin.encode(x), twin.encode(x.float()))
    assert indices.shape == (400, 6)


def test_autocast():
    quantizer, x = build(codebook_dim=5), torch.randn(30, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer(x).loss.isfinite()
        assert torch.equal(quantizer.eval()(x).indices, quantizer.encode(x))


# Each compiles four graphs; the other variants differ in what their stages do, which are tested by themselves.
@pytest.mark.parametrize("name", ["rotation", "shared dead codes", "beam shared", "stages of every kind"])
def test_compiles_without_a_graph_break_in_train_and_eval(name):
    torch._dynamo.reset()
    quantizer = build(**VARIANTS[name]) if name in VARIANTS else of_stages()
    if quantizer.codebook is not None:
        quantizer(torch.randn(60, 8))
    eager = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 9, 8)
    for _ in range(2):
        torch.manual_seed(7)
        a = eager(x, stages=2)
        torch.manual_seed(7)
        b = compiled(x, stages=2)
        torch.testing.assert_close(a.quantized, b.quantized)
        torch.testing.assert_close(a.loss, b.loss)
    assert torch.compile(quantizer.eval(), fullgraph=True, backend="aot_eager")(x).loss.isfinite()
    # What a step of a shared codebook keeps for its end is gone at its end.
    assert all(not getattr(getattr(stage, "codebook", None), "observed", None) for stage in quantizer.quantizers)


def test_state_survives_saving_and_copying(make):
    quantizer = make()
    quantizer(torch.randn(64, 8))
    restored, copied, x = make(), copy.deepcopy(quantizer), torch.randn(10, 8)
    restored.load_state_dict(quantizer.state_dict())
    for twin in (restored, copied):
        results = []
        for model in (copy.deepcopy(quantizer), twin):
            torch.manual_seed(2)
            results.append([model(x).indices for _ in range(4)])
        assert all(torch.equal(a, b) for a, b in zip(*results)), "also the stages that dropout draws go on where they were"


def test_a_shared_codebook_is_one():
    quantizer = build(shared_codebook=True, codebook="learned")
    assert len(list(quantizer.parameters())) == 1
    assert [name for name in quantizer.state_dict() if name.endswith("codes")] == ["codebook.codes"]
    codes, x = quantizer.codebook.codes, torch.randn(50, 8)
    result = quantizer(x)
    assert torch.equal(result.quantized.detach(), codes.detach()[result.indices].sum(1))
    result.loss.backward()
    chosen = torch.zeros(20).index_fill_(0, result.indices.flatten(), 1).bool()
    assert codes.grad[chosen].any() and not codes.grad[~chosen].any()


def test_dead_codes_of_a_shared_codebook_come_from_any_stage():
    quantizer = build(shared_codebook=True, threshold_ema_dead_code=1e6, num_quantizers=2, codebook_size=200)
    x = torch.randn(40, 8)
    before = quantizer.codebook.codes.clone()
    result = quantizer(x)
    rows = torch.cat([x, x - before[result.indices[:, 0]]])
    nearest = torch.cdist(quantizer.codebook.codes, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert (nearest.values < 1e-6).all() and set((nearest.indices >= 40).tolist()) == {True, False}


def test_a_shared_codebook_under_accumulation_and_with_a_wrapper():
    for wrap in (lambda book: book, AffineCodebook):
        books = [wrap(EMACodebook(20, 8, threshold_ema_dead_code=1)) for _ in range(3)]
        quantizer = ResidualQuantizer([Quantizer(8, 20, codebook=book) for book in books], shared_codebook=True)
        inner = getattr(quantizer.codebook, "inner", quantizer.codebook)
        before = inner.cluster_size.clone()
        with accumulate(quantizer):
            found = quantizer(torch.randn(30, 8))
            assert torch.equal(inner.cluster_size, before)
        # What was held back is applied once, not once for the running means and again for the dead codes.
        sums = [total.clone() for total in inner._pending]
        assert sums[1].sum() == 90 and torch.equal(sums[1], torch.bincount(found.indices.flatten(), minlength=20).float())
        quantizer(torch.randn(30, 8))
        assert not inner._pending[1].any() and inner.threshold_ema_dead_code == 1 and inner.codes.isfinite().all()


def test_dropout_draws_as_published():
    torch.manual_seed(1)
    quantizer = build(num_quantizers=8, quantize_dropout=True, quantize_dropout_cutoff_index=2, quantize_dropout_multiple_of=4)
    drawn = [quantizer.draw_stages() for _ in range(600)]
    assert set(drawn) == {4, 8} and 0.25 < drawn.count(4) / 600 < 0.42, "index 3 gives 4, as does 2; 4..7 give 8"
    uniform = build(num_quantizers=5, quantize_dropout=True)
    drawn = [uniform.draw_stages() for _ in range(1000)]
    assert all(150 < drawn.count(number) < 250 for number in range(1, 6))
    x = torch.randn(20, 8)
    used = {int((uniform(x).indices[0] >= 0).sum()) for _ in range(30)}
    assert used == {1, 2, 3, 4, 5}
    assert (uniform.eval()(x).indices >= 0).all()


def test_a_draw_breaks_a_compiled_graph_and_no_more():
    torch._dynamo.reset()
    quantizer, x = build(quantize_dropout=True), torch.randn(20, 8)
    twin, compiled = copy.deepcopy(quantizer), torch.compile(quantizer, backend="aot_eager")
    torch.manual_seed(3)
    expected = [twin(x).indices for _ in range(8)]
    torch.manual_seed(3)
    assert all(torch.equal(compiled(x).indices, indices) for indices in expected)
    assert len({int((indices[0] >= 0).sum()) for indices in expected}) > 1
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(quantizer, backend="aot_eager", fullgraph=True)(x)


def test_a_dropped_stage_learns_nothing():
    quantizer = build(quantize_dropout=True)
    before = copy.deepcopy(quantizer.quantizers[2].state_dict())
    result = quantizer(torch.randn(20, 8), stages=2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.quantizers[2].state_dict().values()))
    assert (result.indices[:, 2] == -1).all() and quantizer.stage_losses(result)[2] == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(dim=None), "dim: .*None"),
        (dict(num_quantizers=None), "num_quantizers: .*None"),
        (dict(codebook_size=None), "codebook_size: .*None"),
        (dict(codebook_size=(4, 5)), "codebook_size: expected 3 numbers.*2"),
        (dict(num_quantizers=0), "quantizers: .*none"),
        (dict(heads=2), "heads, top_k"),
        (dict(codebook=EMACodebook(20, 8)), "codebook: .*EMACodebook"),
        (dict(gradient="gumbel"), "gradient.*gumbel"),
        (dict(quantize_dropout_cutoff_index=3), r"quantize_dropout_cutoff_index: expected 0\.\.2.*3"),
        (dict(quantize_dropout_multiple_of=0), "quantize_dropout_multiple_of.*0"),
        (dict(beam_size=0), "beam_size.*0"),
        (dict(beam_weights=(1,)), "beam_weights: expected 3.*1"),
        (dict(shared_codebook=True, codebook_size=(4, 5, 6)), "shared_codebook: expected 4 codes.*got 5"),
        (dict(quantizers=[Quantizer(8, 5)], dim=8), "num_quantizers: .*3"),
    ],
)
def test_constructor_errors_name_the_argument(change, words):
    with pytest.raises(ValueError, match=words):
        build(**change)


def test_errors_of_given_stages():
    with pytest.raises(ValueError, match=r"quantizers\[1\]: expected dim=8.*7"):
        ResidualQuantizer([Quantizer(8, 5), Quantizer(7, 5)])
    with pytest.raises(ValueError, match=r"quantizers\[0\]: .*one index.*\(2,\)"):
        ResidualQuantizer([Quantizer(8, 5, top_k=2)])
    with pytest.raises(ValueError, match=r"quantizers\[0\]: .*channel_first=True"):
        ResidualQuantizer([Quantizer(8, 5, channel_first=True)])
    with pytest.raises(ValueError, match=r"beam_size: .*quantizers\[1\], a FiniteScalarQuantizer"):
        ResidualQuantizer([Quantizer(3, 5), FiniteScalarQuantizer([5, 5, 5])], beam_size=2)
    with pytest.raises(ValueError, match="shared_codebook: .*FiniteScalarQuantizer"):
        ResidualQuantizer([FiniteScalarQuantizer([5, 5, 5])], shared_codebook=True)


def test_call_errors_name_the_argument_and_change_nothing():
    quantizer = build(quantize_dropout=True)
    before = copy.deepcopy(quantizer.state_dict())
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match="x: .*D = 8.*7"):
        quantizer(torch.randn(3, 7))
    with pytest.raises(ValueError, match=r"mask: .*\(3,\).*\(2,\)"):
        quantizer(x, torch.ones(2, dtype=torch.bool))
    for call in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=r"stages: expected 1\.\.3, got 4"):
            call(x, stages=4)
    with pytest.raises(ValueError, match=r"indices: .*1\.\.3.*\(2, 4\)"):
        quantizer.decode(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(IndexError, match="indices: .*20"):
        quantizer.decode(torch.full((2, 3), 20))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.state_dict().values()))
