"""When and how far codebooks learn: deferred, accumulated over micro-batches, weighted, or not at all."""

import copy

import pytest
import torch

import vqkit
from vqkit.codebooks import EMACodebook, accumulate


def test_deferred_codes_wait_for_update():
    torch.manual_seed(1)
    deferred = EMACodebook(4, 2, decay=0.7, deferred=True)
    immediate = EMACodebook(4, 2, decay=0.7)
    immediate.load_state_dict(deferred.state_dict())
    before = deferred.codes.clone()
    for _ in range(3):
        latents, indices = torch.randn(30, 2), torch.randint(4, (30,))
        deferred.observe(latents, indices), immediate.observe(latents, indices)
    assert torch.equal(deferred.codes, before) and torch.equal(deferred.embed_sum, immediate.embed_sum)
    deferred.update()
    assert torch.equal(deferred.codes, immediate.codes) and not torch.equal(deferred.codes, before)


def test_deferred_replacements_wait_for_update():
    codebook = EMACodebook(4, 2, decay=0.5, threshold_ema_dead_code=0.6, deferred=True)
    latents, before = torch.randn(6, 2) + 9, codebook.codes.clone()
    for _ in range(2):
        codebook.observe(latents, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(codebook.codes, before)
    codebook.update()
    assert (codebook.codes > 4).all()


@pytest.mark.parametrize("options", [{}, dict(decay=0.9, codebook_dim=3), dict(heads=2, codebook_dim=3), dict(metric="cosine")])
@pytest.mark.parametrize("compiled", [False, True])
def test_micro_batches_equal_one_batch(options, compiled):
    torch._dynamo.reset()
    torch.manual_seed(2)
    whole = vqkit.Quantizer(6, 8, **options)
    parts = copy.deepcopy(whole)
    call = torch.compile(parts, fullgraph=True, backend="aot_eager") if compiled else parts
    mask = torch.rand(3, 20) > 0.2
    for _ in range(3):
        batch = torch.randn(3, 20, 6)
        whole(batch, mask)
        with accumulate(call):
            held = [call(batch[number], mask[number]).indices for number in (0, 1)]
            assert not torch.equal(parts.codes, whole.codes) and held[0].max() >= 0
        call(batch[2], mask[2])
        torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_accumulation_leaves_no_trace():
    torch.manual_seed(2)
    quantizer = vqkit.Quantizer(6, 8)
    with accumulate(quantizer), accumulate(quantizer):
        quantizer(torch.randn(20, 6))
    quantizer(torch.randn(20, 6))
    twin = vqkit.Quantizer(6, 8)
    twin.load_state_dict(quantizer.state_dict())
    x = torch.randn(20, 6)
    quantizer(x), twin(x)
    assert all(torch.equal(a, b) for a, b in zip(quantizer.state_dict().values(), twin.state_dict().values()))


def test_accumulation_ends_with_an_error():
    quantizer = vqkit.Quantizer(6, 8)
    with pytest.raises(ValueError, match="x: "), accumulate(quantizer):
        quantizer(torch.randn(3, 5))
    before = quantizer.codes
    quantizer(torch.randn(20, 6))
    assert not torch.equal(quantizer.codes, before)


@pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5), torch.linspace(0, 2, 4).double()], ids=["number", "scalar", "a code"])
def test_an_update_of_a_weight(weight):
    codebook = EMACodebook(4, 2, decay=0.8)
    latents, indices = torch.randn(30, 2), torch.randint(4, (30,))
    rate = 0.2 * torch.as_tensor(weight).float().expand(4)
    counts = torch.bincount(indices, minlength=4)
    sums = torch.zeros(4, 2).index_add(0, indices, latents)
    size, total = torch.ones(4).lerp(counts.float(), rate), codebook.embed_sum.lerp(sums, rate[:, None])
    codebook.observe(latents, indices, weight)
    torch.testing.assert_close((codebook.cluster_size, codebook.embed_sum), (size, total))


def test_a_quantizer_passes_the_weight_on():
    quantizer = vqkit.Quantizer(6, 8, decay=0.8)
    twin = vqkit.Quantizer(6, 8, decay=0.9)
    twin.load_state_dict(quantizer.state_dict())
    x = torch.randn(30, 6)
    torch.testing.assert_close(quantizer(x, update_weight=0.5).loss, twin(x).loss)
    torch.testing.assert_close(quantizer.codes, twin.codes)
    with pytest.raises(ValueError, match=r"update_weight: .*\(8,\), got shape \(3,\)"):
        quantizer(x, update_weight=torch.ones(3))
    supplied = vqkit.Quantizer(6, 8, codebook=vqkit.codebooks.SuppliedCodebook(8, 6))
    with pytest.raises(ValueError, match="update_weight: .*SuppliedCodebook"):
        supplied(x, codes=torch.randn(8, 6), update_weight=0.5)


@pytest.mark.parametrize("kind", ["ema", "learned"])
def test_a_decay_of_one_learns_nothing(kind):
    quantizer = vqkit.Quantizer(6, 8, codebook=kind, decay=1.0, threshold_ema_dead_code=2)
    before = copy.deepcopy(quantizer.state_dict())
    for _ in range(3):
        quantizer(torch.randn(30, 6))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", ["ema", "learned"])
def test_a_call_that_does_not_learn(kind):
    quantizer = vqkit.Quantizer(6, 8, codebook=kind, kmeans_init=True, threshold_ema_dead_code=2)
    before = copy.deepcopy(quantizer.state_dict())
    x = torch.randn(30, 6, requires_grad=True)
    result = quantizer(x, learn=False)
    result.loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert x.grad.any() and all(p.grad is None for p in quantizer.parameters())
    quantizer(x)
    assert quantizer.codebook.initialised
    use = quantizer.codebook.cluster_size.clone()
    quantizer.eval()(x, learn=True)
    assert not torch.equal(quantizer.codebook.cluster_size, use)
