"""What every quantizer promises, whatever it does inside. A new kind joins with one line in QUANTIZERS."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from vqkit import quantizers
from vqkit.codebooks import AffineCodebook, EMACodebook, SemanticCodebook, accumulate
from vqkit.quantizers import AdaptiveQuantizer, FiniteScalarQuantizer, GumbelQuantizer, LookupFreeQuantizer, ProductQuantizer, Quantizer, SemanticQuantizer
from vqkit.quantizers.grouped_residual import GroupedResidualQuantizer
from vqkit.quantizers.implicit import ImplicitResidualQuantizer
from vqkit.quantizers.regularizers import Contrastive, Diversity, Entropy, Orthogonality
from vqkit.quantizers.residual import ResidualQuantizer

_REGULARIZERS = Orthogonality(0.1, active_codes_only=True), Diversity(0.1), Entropy(0.1), Contrastive(0.1)

# Small instances of every kind; each is called with channel_first=False or True. dim is theirs, at most 12.
QUANTIZERS = {
    "ema": lambda **layout: Quantizer(6, 20, **layout),
    "learned": lambda **layout: Quantizer(6, 20, codebook="learned", **layout),
    "anchored": lambda **layout: Quantizer(6, 20, codebook="anchored", **layout),
    "linear": lambda **layout: Quantizer(6, 20, codebook="linear", metric="cosine", **layout),
    "affine": lambda **layout: Quantizer(6, 20, codebook=AffineCodebook(EMACodebook(20, 6)), **layout),
    "factorised": lambda **layout: Quantizer(6, 20, codebook_dim=3, metric="cosine", gradient="rotation", **layout),
    "heads": lambda **layout: Quantizer(6, 20, heads=3, codebook_dim=4, **layout),
    "top 3": lambda **layout: Quantizer(6, 20, top_k=3, **layout),
    "sampled": lambda **layout: Quantizer(6, 20, temperature=0.5, **layout),
    "regularized": lambda **layout: Quantizer(6, 20, codebook="learned", regularizers=_REGULARIZERS, **layout),
    "revived": lambda **layout: Quantizer(6, 20, kmeans_init=True, threshold_ema_dead_code=1, **layout),
    "product": lambda **layout: ProductQuantizer([Quantizer(4, 9, top_k=2), Quantizer(4, 7, codebook="learned")], **layout),
    "FSQ": lambda **layout: FiniteScalarQuantizer([8, 5, 5], **layout),
    "FSQ projected": lambda **layout: FiniteScalarQuantizer([4, 3], 6, num_codebooks=2, **layout),
    "LFQ": lambda **layout: LookupFreeQuantizer(6, **layout),
    "BSQ": lambda **layout: LookupFreeQuantizer(8, 16, num_codebooks=2, spherical=True, **layout),
    "Gumbel": lambda **layout: GumbelQuantizer(6, 20, **layout),
    "residual": lambda **layout: ResidualQuantizer(dim=6, num_quantizers=3, codebook_size=10, **layout),
    "residual projected": lambda **layout: ResidualQuantizer(dim=6, num_quantizers=2, codebook_size=10, codebook_dim=4, **layout),
    "residual shared": lambda **layout: ResidualQuantizer(dim=6, num_quantizers=2, codebook_size=10, shared_codebook=True, **layout),
    "residual beam": lambda **layout: ResidualQuantizer(dim=6, num_quantizers=2, codebook_size=10, beam_size=3, **layout),
    "residual stages": lambda **layout: ResidualQuantizer(
        [Quantizer(6, 9, codebook_dim=4, metric="cosine"), FiniteScalarQuantizer([4, 4], 6), LookupFreeQuantizer(6)], **layout
    ),
    "grouped": lambda **layout: GroupedResidualQuantizer(dim=6, groups=2, num_quantizers=2, codebook_size=10, codebook="learned", **layout),
    "semantic": lambda **layout: SemanticQuantizer(SemanticCodebook(20, 6, 4, threshold_ema_dead_code=0.1), **layout),
    "adaptive": lambda **layout: AdaptiveQuantizer(6, 48, code_dims=(4, 6), **layout),
    "implicit": lambda **layout: ImplicitResidualQuantizer(6, 2, 8, depth=1, **layout),
}
# Exported, but with another contract: a result, labels without an output, token maps of whole pictures, a stage of residual ones,
# indices of two codebooks in training.
OTHERS = {"Quantized", "RandomProjectionQuantizer", "MultiScaleQuantizer", "ImplicitQuantizer", "RateAdaptiveQuantizer"}
# Micro-batches cannot equal one batch: training draws at random, or moves one codebook several times a step.
UNEQUAL = {"sampled", "revived", "Gumbel", "adaptive", "residual shared"}
# Losses that are not means over the latents.
OF_THE_BATCH = {"regularized", "LFQ", "BSQ", "residual stages"}


@pytest.fixture(params=QUANTIZERS, ids=str)
def name(request):
    return request.param


@pytest.fixture
def quantizer(name):
    return QUANTIZERS[name](channel_first=False)


def latents(quantizer, *shape):
    return torch.randn(*shape, quantizer.dim)


def trained(quantizer):
    """After a few steps, so that nothing is as it was made."""
    for _ in range(3):
        quantizer(latents(quantizer, 64))
    return quantizer


def everything(result):
    return [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]


def test_every_exported_kind_is_here():
    made = {type(make(channel_first=False)).__name__ for make in QUANTIZERS.values()}
    assert set(quantizers.__all__) <= made | OTHERS


def test_attributes_describe_the_indices(quantizer):
    result = quantizer(latents(quantizer, 3, 5))
    assert quantizer.channel_first is False and result.quantized.shape == (3, 5, quantizer.dim) and result.loss.shape == ()
    sizes, selections = quantizer.codebook_sizes, quantizer.selections
    assert len(sizes) == len(selections) and result.indices.dtype == torch.int64
    columns = result.indices.reshape(15, -1)
    assert columns.shape[1] == sum(selections)
    for size, part in zip(sizes, columns.split(selections, -1), strict=True):
        assert 0 <= part.min() and part.max() < size
    for measure in (result.usage, result.perplexity):
        assert measure is None or measure.shape == ()


def test_decode_of_encode_is_eval_forward(quantizer):
    trained(quantizer).eval()
    x, mask = latents(quantizer, 3, 7), torch.rand(3, 7) > 0.3
    quantized, indices, _ = quantizer(x, mask)
    assert torch.equal(quantizer.encode(x, mask), indices) and torch.equal(quantizer.decode(indices), quantized)
    assert (indices[~mask] == -1).all() and (indices[mask] >= 0).all() and not quantized[~mask].any()


def test_training_returns_what_its_indices_decode_to(quantizer):
    trained(quantizer)
    before = copy.deepcopy(quantizer)
    found = quantizer(latents(quantizer, 50))
    if any(isinstance(part, AffineCodebook) for part in before.modules()):
        pytest.skip("its codes follow the batch before it is searched")
    torch.testing.assert_close(before.decode(found.indices), found.quantized, rtol=1e-6, atol=1e-6)


def test_channel_first_is_a_change_of_layout(name):
    torch.manual_seed(3)
    last, first = QUANTIZERS[name](channel_first=False), QUANTIZERS[name](channel_first=True)
    first.load_state_dict(last.state_dict())
    x, mask = latents(last, 2, 4, 5), torch.rand(2, 4, 5) > 0.2
    found = []
    for module, layout in ((last, x), (first, x.movedim(-1, 1))):
        torch.manual_seed(4)
        found.append(module(layout, mask))
    a, b = found
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices)
    torch.testing.assert_close(a.loss, b.loss)
    last.eval(), first.eval()
    indices = last.encode(x, mask)
    assert torch.equal(first.encode(x.movedim(-1, 1), mask), indices)
    assert torch.equal(first.decode(indices).movedim(1, -1), last.decode(indices))


def test_masked_rows_do_not_matter(quantizer):
    twin = copy.deepcopy(quantizer)
    x, mask = latents(quantizer, 60), torch.rand(60) > 0.3
    states = []
    for module, rows in ((quantizer, x), (twin, x.masked_fill(~mask[:, None], 1e6))):
        torch.manual_seed(4)
        rows.requires_grad_()
        result = module(rows, mask)
        (result.loss + result.quantized.square().sum()).backward()
        assert not rows.grad[~mask].any()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        states.append([*everything(result), rows.grad, *gradients, *module.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_lengths_are_a_mask(quantizer):
    twin = copy.deepcopy(quantizer)
    x, lengths = latents(quantizer, 3, 7), torch.tensor([7, 0, 4])
    found = []
    for module, mask in ((quantizer, lengths), (twin, torch.arange(7) < lengths[:, None])):
        torch.manual_seed(4)
        found.append([*everything(module(x, mask)), module.encode(x, mask), *module.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_row_that_is_not_finite_is_a_masked_row(quantizer):
    twin = copy.deepcopy(quantizer)
    x, mask = latents(quantizer, 60), torch.ones(60, dtype=torch.bool).index_fill_(0, torch.tensor([3, 9]), False)
    bad = x.clone()
    bad[3, 1], bad[9] = torch.nan, -torch.inf
    states = []
    for module, rows, keep in ((quantizer, x, mask), (twin, bad, None)):
        torch.manual_seed(4)
        rows.requires_grad_()
        result = module(rows, keep)
        (result.loss + result.quantized.square().sum()).backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        states.append([*everything(result), rows.grad, *gradients, *module.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True)) and all(t.isfinite().all() for t in states[1])


def test_an_empty_or_masked_batch_is_no_accident(quantizer):
    trained(quantizer)
    before = [t.clone() for t in quantizer.state_dict().values()]
    for x, mask in ((latents(quantizer, 0), None), (latents(quantizer, 8), torch.zeros(8, dtype=torch.bool))):
        result = quantizer(x.requires_grad_(), mask)
        (result.loss + result.quantized.sum()).backward()
        assert result.loss.isfinite() and (result.indices == -1).all() and x.grad.isfinite().all()
    assert all(t.isfinite().all() for t in quantizer.state_dict().values()) and len(before) == len(quantizer.state_dict())


def test_a_bfloat16_model(quantizer):
    quantizer.to(torch.bfloat16)
    x = latents(quantizer, 40).bfloat16()
    for _ in range(3):
        result = quantizer(x.requires_grad_())
        (result.loss + result.quantized.float().square().sum()).backward()
    assert result.quantized.dtype == torch.bfloat16 and result.loss.isfinite() and x.grad.isfinite().all()
    averages = [b for key, b in quantizer.state_dict().items() if key.split(".")[-1] in ("cluster_size", "embed_sum", "latent_mean")]
    assert all(average.dtype == torch.float32 for average in averages)
    quantizer.eval()
    found = quantizer(x)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), found.quantized)


def test_it_compiles_whole_in_training_and_eval(name, quantizer):
    torch._dynamo.reset()
    trained(quantizer)
    twin = copy.deepcopy(quantizer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = latents(quantizer, 4, 9)
    for mode in (True, False):
        quantizer.train(mode), twin.train(mode)
        torch.manual_seed(5)
        expected = quantizer(x)
        torch.manual_seed(5)
        found = compiled(x)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close((found.quantized, found.loss), (expected.quantized, expected.loss))
    torch.testing.assert_close(twin.state_dict(), quantizer.state_dict())


def test_copies_and_states_are_the_same_quantizer(name, quantizer):
    trained(quantizer)
    restored = QUANTIZERS[name](channel_first=False)
    assert not any(restored.load_state_dict(quantizer.state_dict()))
    x = latents(quantizer, 30)
    twins = [restored, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))]
    found = []
    for module in (quantizer, *twins):
        torch.manual_seed(6)
        step = module(x)
        found.append([*everything(step), *everything(module.eval()(x)), *module.state_dict().values()])
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_it_exports_in_eval_mode(quantizer):
    trained(quantizer).eval()
    x = latents(quantizer, 5)
    exported = torch.export.export(quantizer, (x,)).module()
    quantized, indices, _ = exported(x)
    expected = quantizer(x)
    assert torch.equal(indices, expected.indices) and torch.equal(quantized, expected.quantized)


def test_micro_batches_equal_one_batch(name, quantizer):
    if name in UNEQUAL:
        pytest.skip("its training draws at random, or moves one codebook several times a step")
    twin = copy.deepcopy(quantizer)
    batch = latents(quantizer, 2, 32).requires_grad_()
    found = quantizer(batch)
    (found.loss + found.quantized.square().mean()).backward()
    for number, part in enumerate(batch):
        with accumulate(twin) if number == 0 else contextlib.nullcontext():
            found = twin(part)
            ((found.loss + found.quantized.square().mean()) / 2).backward()
    if not any(isinstance(part, AffineCodebook) for part in quantizer.modules()):
        torch.testing.assert_close(twin.state_dict(), quantizer.state_dict(), rtol=1e-4, atol=1e-5)
    if name not in OF_THE_BATCH:
        gradients = [[p.grad for p in module.parameters() if p.requires_grad] for module in (twin, quantizer)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_errors_name_what_does_not_fit(quantizer):
    before = [t.clone() for t in quantizer.state_dict().values()]
    dim = quantizer.dim
    with pytest.raises(ValueError, match=f"x: .*{dim}.*{dim + 1}"):
        quantizer(torch.randn(3, dim + 1))
    for mask in (torch.ones(2, dtype=torch.bool), torch.ones(3), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="mask: "):
            quantizer(torch.randn(3, dim), mask)
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.state_dict().values()))
