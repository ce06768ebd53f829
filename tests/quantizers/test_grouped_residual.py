"""Groups of channels with residual stages of their own."""

import copy

import pytest
import torch

from vqkit.quantizers.grouped_residual import GroupedResidualQuantizer
from vqkit.quantizers.residual import ResidualQuantizer


def build(**change):
    return GroupedResidualQuantizer(**(dict(dim=12, groups=3, num_quantizers=2, codebook_size=20) | change))


@pytest.mark.parametrize("change", [{}, dict(codebook_dim=3), dict(shared_codebook=True), dict(eval_beam_size=3)], ids=str)
def test_groups_are_quantized_apart(change):
    quantizer = build(**change).eval()
    x, mask = torch.randn(3, 7, 12), torch.rand(3, 7) > 0.3
    result = quantizer(x, mask)
    assert result.indices.shape == (3, 7, 6) and quantizer.codebook_sizes == (20,) * 6 and quantizer.selections == (1,) * 6
    alone = [part(piece, mask) for part, piece in zip(quantizer.quantizers, x.chunk(3, -1))]
    assert torch.equal(result.quantized, torch.cat([part.quantized for part in alone], -1))
    assert torch.equal(result.indices, torch.cat([part.indices for part in alone], -1))
    torch.testing.assert_close(result.loss, sum(part.loss for part in alone))
    torch.testing.assert_close(quantizer.stage_losses(result).sum(), result.loss)
    assert torch.equal(quantizer.encode(x, mask), result.indices) and torch.equal(quantizer.decode(result.indices), result.quantized)
    assert not result.quantized[~mask].any() and (result.indices[~mask] == -1).all()
    coarse = quantizer.decode(result.indices.unflatten(-1, (3, 2))[..., :1].flatten(-2))
    assert "eval_beam_size" in change or torch.equal(coarse, quantizer(x, mask, stages=1).quantized)


def test_channel_first_gradients_and_learning():
    last = build(codebook="learned")
    first = copy.deepcopy(last)
    first.channel_first = True
    x = torch.randn(2, 4, 5, 12, requires_grad=True)
    a, b = last(x), first(x.movedim(-1, 1))
    assert torch.equal(a.quantized, b.quantized.movedim(1, -1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(first.decode(b.indices).movedim(1, -1), a.quantized)
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((a.quantized * weight).sum(), x, retain_graph=True)
    assert torch.equal(gradient, weight)
    a.loss.backward()
    assert x.grad.any() and all(p.grad.any() for p in last.parameters())


def test_a_bad_number_leaves_the_row_out_of_all_groups():
    quantizer, x = build(), torch.randn(9, 12)
    x[4, 7] = torch.nan
    result = quantizer(x)
    assert (result.indices[4] == -1).all() and not result.quantized[4].any() and result.loss.isfinite()


def test_all_groups_drop_the_same_stages():
    quantizer = build(num_quantizers=4, quantize_dropout=True)
    seen = set()
    for _ in range(30):
        used = (quantizer(torch.randn(5, 12)).indices.unflatten(-1, (3, 4)) >= 0).sum(-1)
        assert used.unique().numel() == 1
        seen.add(int(used[0, 0]))
    assert seen == {1, 2, 3, 4}
    restored = build(num_quantizers=4, quantize_dropout=True)
    restored.load_state_dict(quantizer.state_dict())
    assert [restored.draw_stages() for _ in range(8)] == [quantizer.draw_stages() for _ in range(8)]


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    quantizer = build()
    eager, x = copy.deepcopy(quantizer), torch.randn(4, 9, 12)
    a, b = eager(x), torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(a.quantized, b.quantized)
    assert torch.compile(quantizer.eval(), fullgraph=True, backend="aot_eager")(x).loss.isfinite()


def test_the_peer():
    peer = pytest.importorskip("vector_quantize_pytorch")
    theirs = peer.GroupedResidualVQ(dim=12, groups=3, num_quantizers=2, codebook_size=20, rotation_trick=False)
    ours = build(gradient="stages")
    for group, part in zip(theirs.rvqs, ours.quantizers):
        for layer, stage in zip(group.layers, part.quantizers):
            stage.codebook.codes.copy_(layer.codebook)
            stage.codebook.embed_sum.copy_(layer.codebook)
    for _ in range(3):
        x = torch.randn(4, 15, 12)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        quantized, indices, losses = theirs(a)
        result = ours(b)
        assert torch.equal(result.indices.unflatten(-1, (3, 2)), indices.movedim(0, -2))
        torch.testing.assert_close(result.quantized, quantized, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.stage_losses(result), losses, rtol=1e-4, atol=1e-6)
        (losses.sum() + quantized.square().sum()).backward(), (result.loss + result.quantized.square().sum()).backward()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.eval().decode(result.indices), theirs.eval().get_output_from_indices(indices), rtol=1e-4, atol=1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="groups: .*divisor.*5 with dim=12"):
        build(groups=5)
    with pytest.raises(ValueError, match="quantizers: .*none"):
        GroupedResidualQuantizer([])
    stages = [ResidualQuantizer(dim=4, num_quantizers=number, codebook_size=5) for number in (2, 3)]
    with pytest.raises(ValueError, match=r"quantizers\[1\]: expected 2 stages.*3"):
        GroupedResidualQuantizer(stages)
    with pytest.raises(ValueError, match="num_quantizers: .*2"):
        GroupedResidualQuantizer(stages[:1], num_quantizers=2)
    with pytest.raises(ValueError, match=r"quantizers\[0\].*channel_first"):
        GroupedResidualQuantizer([ResidualQuantizer(dim=4, num_quantizers=2, codebook_size=5, channel_first=True)])
    with pytest.raises(ValueError, match="x: .*D = 12.*7"):
        build()(torch.randn(3, 7))
    with pytest.raises(ValueError, match="indices: .*3 groups.*4"):
        build().decode(torch.zeros(2, 4, dtype=torch.int64))
