"""Beam search over residual stages: exhaustive where it is wide, never worse where it is wider, and what training learns from it."""

import copy
import itertools

import pytest
import torch

from vqkit.codebooks import EMACodebook, LearnedCodebook, RateAdaptiveCodebook, SemanticCodebook
from vqkit.codebooks.rate_adaptive import resize_codes
from vqkit.quantizers import RateAdaptiveQuantizer, SemanticQuantizer
from vqkit.quantizers.beam import beam_search
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.regularizers import Orthogonality
from vqkit.quantizers.residual import ResidualQuantizer


def build(**change):
    return ResidualQuantizer(**(dict(dim=8, num_quantizers=3, codebook_size=20) | change))


@pytest.mark.parametrize("change", [dict(), dict(metric="cosine"), dict(codebook="learned", beam_weights=(1.0, 0.5, 2.0))], ids=str)
def test_a_beam_as_wide_as_all_sums_is_exhaustive(change):
    quantizer = build(dim=3, codebook_size=4, eval_beam_size=16, **change).eval()
    with torch.no_grad():
        for stage in quantizer.quantizers:
            stage.codebook.codes.normal_()
    x = torch.randn(40, 3)
    codes = [stage.codes.double() for stage in quantizer.quantizers]
    sequences = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = torch.stack([book[sequences[:, place]] for place, book in enumerate(codes)], 1).cumsum(1)
    errors = (x.double()[:, None, None] - sums).square().sum(-1)
    scores = errors[..., -1] if quantizer.beam_weights is None else (errors * torch.tensor(quantizer.beam_weights)).sum(-1)
    assert torch.equal(quantizer.encode(x), sequences[scores.argmin(-1)])


def test_a_wider_beam_is_no_worse_and_one_is_the_plain_search():
    plain = build(num_quantizers=4, codebook_size=16, kmeans_init=True)
    x = torch.randn(500, 8)
    plain(x)
    plain.eval()
    errors = []
    for beam in (1, 2, 8, 32):
        plain.eval_beam_size = beam
        result = plain(x)
        errors.append(float((x - result.quantized).square().mean()))
        assert torch.equal(plain.decode(result.indices), result.quantized)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.93 * errors[0]
    wide = copy.deepcopy(plain)
    plain.eval_beam_size = 1
    found = wide.encode(x)
    assert torch.equal(beam_search(plain.quantizers, x, 1, None, None), plain.encode(x))
    assert found.shape == (500, 4)


def test_a_beam_in_training_learns_from_its_own_codes():
    quantizer = build(beam_size=4, decay=0.5, gradient="stages")
    before, x = copy.deepcopy(quantizer), torch.randn(60, 8, requires_grad=True)
    result = quantizer(x)
    assert torch.equal(before.decode(result.indices), result.quantized)
    residual = x.detach()
    for stage, old, column, part in zip(quantizer.quantizers, before.quantizers, result.indices.unbind(-1), result.parts):
        twin = EMACodebook(20, 8, decay=0.5)
        twin.load_state_dict(old.codebook.state_dict())
        twin.observe(residual, column)
        torch.testing.assert_close(stage.codebook.codes, twin.codes)
        residual = residual - old.codes[column]
        torch.testing.assert_close(part.loss, residual.square().mean())
    result.loss.backward()
    assert x.grad.any()


def test_beams_start_each_stage_from_its_residuals():
    quantizer = build(beam_size=3, kmeans_init=True, codebook_dim=5)
    quantizer(torch.randn(200, 8))
    assert all(stage.codebook.initialised for stage in quantizer.quantizers)
    sizes = [float(stage.codes.norm()) for stage in quantizer.quantizers]
    assert sizes == sorted(sizes, reverse=True), "residuals get shorter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stages_with_layers_of_their_own(dtype):
    stages = [Quantizer(8, 20, codebook_dim=3, metric="cosine"), Quantizer(8, 16, codebook_dim=4, codebook="learned"), Quantizer(8, 5)]
    quantizer = ResidualQuantizer(stages, beam_size=7).to(dtype)
    x = torch.randn(60, 8).to(dtype).requires_grad_()
    result = quantizer(x)
    (result.loss + result.quantized.float().square().sum()).backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in stages[0].project_in.parameters())
    quantizer.eval()
    found = quantizer(x)
    assert found.quantized.dtype == dtype and torch.equal(quantizer.decode(quantizer.encode(x)), found.quantized)
    beam, quantizer.eval_beam_size = found, 1
    greedy = quantizer(x)
    assert (x - beam.quantized).float().square().mean() < (x - greedy.quantized).float().square().mean()


def test_regularizers_and_health_see_what_the_beam_chose():
    stages = [Quantizer(8, 20, codebook="learned", regularizers=[Orthogonality(0.5)]) for _ in range(2)]
    quantizer = ResidualQuantizer(stages, beam_size=3)
    result = quantizer(torch.randn(60, 8))
    for part in result.parts:
        torch.testing.assert_close(part.loss, part.losses["commitment"] + part.losses["codebook"] + 0.5 * part.losses["orthogonality"])
    assert [health.steps for health in quantizer.health()] == [1, 1]
    assert [health.usage for health in quantizer.health()] == [int((part.counts > 0).sum()) / 20 for part in result.parts]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 2.0)])
def test_the_peer(weights):
    peer = pytest.importorskip("vector_quantize_pytorch")
    options = dict(dim=8, num_quantizers=3, codebook_size=20, rotation_trick=False, beam_score_quantizer_weights=list(weights))
    theirs = peer.ResidualVQ(**options, beam_size=4, eval_beam_size=3)
    ours = build(beam_size=4, eval_beam_size=3, beam_weights=weights, gradient="stages")
    for layer, stage in zip(theirs.layers, ours.quantizers):
        stage.codebook.codes.copy_(layer.codebook)
        stage.codebook.embed_sum.copy_(layer.codebook)
    x, weight = torch.randn(4, 15, 8), torch.randn(4, 15, 8)
    theirs.eval(), ours.eval()
    assert torch.equal(ours.encode(x), theirs(x)[1])
    theirs.train(), ours.train()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    quantized, indices, losses = theirs(a)
    result = ours(b)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, quantized, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.stage_losses(result), losses, rtol=1e-4, atol=1e-6)
    (losses.sum() + (quantized * weight).sum()).backward(), (result.loss + (result.quantized * weight).sum()).backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    # Of the others it updates none: it takes the residuals of the first stage for those of the best sum.
    torch.testing.assert_close(ours.quantizers[0].codes, theirs.layers[0].codebook, rtol=1e-4, atol=1e-5)


def test_stages_of_kinds_derived_from_quantizer():
    quantizer = ResidualQuantizer([SemanticQuantizer(SemanticCodebook(20, 8, 4)), Quantizer(8, 16)], beam_size=3)
    before, x = copy.deepcopy(quantizer), torch.randn(60, 8)
    result = quantizer(x)
    assert torch.equal(before.decode(result.indices), result.quantized)
    rate_adaptive = RateAdaptiveQuantizer(RateAdaptiveCodebook(LearnedCodebook(20, 8), resize_codes), None)
    with pytest.raises(ValueError, match=r"beam_size: expected 1 as quantizers\[0\], a RateAdaptiveQuantizer"):
        ResidualQuantizer([rate_adaptive], beam_size=2)
