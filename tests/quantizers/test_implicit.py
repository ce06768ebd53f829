"""Codes that a network moves by what has been summed so far: all pairs written out, chunks, gradients, beams, the peer's numbers."""

import copy

import pytest
import torch

from vqkit.quantizers import implicit
from vqkit.quantizers.implicit import CodeNetwork, ImplicitQuantizer, ImplicitResidualQuantizer


def build(**change):
    quantizer = ImplicitResidualQuantizer(**(dict(dim=6, num_quantizers=3, codebook_size=20, depth=2) | change))
    with torch.no_grad():
        for stage in quantizer.quantizers:
            stage.codebook.codes.normal_()
    return quantizer


def written_out(quantizer, x):
    """Indices, what each stage adds and the errors, in float64, by all N x K moved codes."""
    total, found, added = torch.zeros_like(x), [], []
    for stage in quantizer.quantizers:
        codes = stage.codebook.codes
        table = codes.expand(len(x), -1, -1)
        if isinstance(stage, ImplicitQuantizer):
            network = stage.network
            pairs = torch.cat([total[:, None].expand_as(table), table], -1)
            table = network.project_in(pairs)
            for block in network.blocks:
                table = table + block[2](torch.nn.functional.silu(block[0](table)))
        indices = (x[:, None] - total[:, None] - table).square().sum(-1).argmin(-1)
        added.append(table[torch.arange(len(x)), indices])
        total = total + added[-1]
        found.append(indices)
    return torch.stack(found, -1), added


def test_is_the_nearest_of_all_moved_codes(monkeypatch):
    quantizer, x = build(commitment_weight=0.25), torch.randn(37, 6)
    with torch.no_grad():
        indices, added = written_out(copy.deepcopy(quantizer).double(), x.double())
    result = quantizer(x)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, sum(added).float(), rtol=1e-4, atol=1e-5)
    residual, losses = x.double(), []
    for part in added:
        residual = residual - part
        losses.append(1.25 * residual.square().mean().float())
    torch.testing.assert_close(quantizer.stage_losses(result), torch.stack(losses), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(implicit, "_BLOCK", 20 * 6 * 5)
    assert torch.equal(quantizer.encode(x), indices), "five rows at a time"


def test_no_array_of_all_pairs(monkeypatch):
    monkeypatch.setattr(implicit, "_BLOCK", 20 * 6 * 4)
    stage, sizes = ImplicitQuantizer(6, 20), []
    stage.network.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    stage(torch.randn(300, 6), condition=torch.randn(300, 6)).loss.backward()
    assert max(sizes) <= max(20 * 6 * 4, 300 * 6)


def test_gradients_are_those_of_each_stage_alone():
    quantizer, x = build(commitment_weight=0.25), torch.randn(37, 6, requires_grad=True)
    result = quantizer(x)
    quantizer.stage_losses(result)[2].backward()
    others = [p for stage in list(quantizer.quantizers)[:2] for p in stage.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in others)
    assert all(p.grad.any() for p in quantizer.quantizers[2].parameters())
    left = (x - result.quantized).detach()
    torch.testing.assert_close(x.grad, 0.25 * 2 * left / x.numel(), rtol=1e-4, atol=1e-6)
    # The gradient of the last stage's moved codes, through its network, in float64.
    twin = copy.deepcopy(quantizer).double()
    total = quantizer.decode_stages(result.indices)[:2].sum(0).double()
    stage = twin.quantizers[2]
    stage.zero_grad()
    moved = stage.network(stage.codebook.codes[result.indices[:, 2]], total)
    ((x.detach().double() - total) - moved).square().mean().backward()
    for ours, theirs in zip(quantizer.quantizers[2].parameters(), stage.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [{}, dict(codebook_dim=4), dict(beam_size=3), dict(codebook_size=(20, 12, 8), hidden_dim=9)], ids=str)
def test_round_trip_masks_and_compile(change):
    quantizer = build(**change)
    x, mask = torch.randn(4, 9, 6), torch.rand(4, 9) > 0.3
    x[0, 0, 0], mask[0, 0] = torch.nan, True
    kept = mask & x.isfinite().all(-1)
    result = quantizer(x, mask)
    assert not result.quantized[~kept].any() and (result.indices[~kept] == -1).all() and (result.indices[kept] >= 0).all()
    (result.loss + result.quantized.square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters() if p.grad is not None)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x, mask)
    torch.testing.assert_close(compiled.loss, result.loss)
    quantizer.eval()
    result = quantizer(x, mask)
    assert torch.equal(quantizer.encode(x, mask), result.indices)
    assert torch.equal(quantizer.decode(result.indices), result.quantized)
    short = quantizer(x, mask, stages=2)
    assert torch.equal(quantizer.decode(short.indices), short.quantized)
    assert torch.equal(quantizer.decode(short.indices[..., :2]), short.quantized)
    assert quantizer(x[:0]).indices.shape == (0, 9, 3)


def test_a_beam_finds_nearer_sums():
    plain, x = build(), torch.randn(200, 6)
    plain.eval()
    errors = []
    for beam in (1, 4, 8):
        plain.eval_beam_size = beam
        errors.append(float((x - plain(x).quantized.detach()).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_frozen_and_dtypes():
    quantizer, x = build(), torch.randn(30, 6)
    rows = x.clone().requires_grad_()
    quantizer(rows, learn=False).loss.backward()
    assert rows.grad.any() and all(p.grad is None for p in quantizer.parameters())
    half = copy.deepcopy(quantizer).bfloat16().eval()
    result = half(x.bfloat16())
    assert result.quantized.dtype == torch.bfloat16
    assert torch.equal(half.decode(half.encode(x.bfloat16())), result.quantized)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), quantizer(x).indices)
    assert torch.equal(quantizer.encode(x), quantizer(x).indices)


def test_training_beats_plain_stages():
    torch.manual_seed(1)
    quantizer = build(dim=4, codebook_size=16, num_quantizers=2, hidden_dim=32)
    x = torch.randn(512, 4).cumsum(-1)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.01)
    errors = []
    for _ in range(150):
        result = quantizer(x)
        optimizer.zero_grad(), result.loss.backward(), optimizer.step()
        errors.append(float((x - result.quantized.detach()).square().mean()))
    assert errors[-1] < 0.3 * errors[0]


def test_the_peer():
    peer = pytest.importorskip("vector_quantize_pytorch")
    options = dict(implicit_neural_codebook=True, rotation_trick=False, mlp_kwargs=dict(depth=2, dim_hidden=9))
    theirs = peer.ResidualVQ(dim=6, num_quantizers=3, codebook_size=20, **options)
    ours = build(hidden_dim=9, gradient="stages")
    with torch.no_grad():
        for layer, stage in zip(theirs.layers, ours.quantizers):
            stage.codebook.codes.copy_(layer._codebook.embed[0])
        for network, stage in zip(theirs.mlps, list(ours.quantizers)[1:]):
            names = {name: name.replace("proj_in", "project_in").replace("layers", "blocks") for name in network.state_dict()}
            state = {names[name]: value for name, value in network.state_dict().items()}
            stage.network.load_state_dict(state)
    x = torch.randn(4, 15, 6)
    quantized, indices, losses = theirs(x.clone().requires_grad_())
    result = ours(x.clone().requires_grad_())
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, quantized, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack([part.losses["commitment"] for part in result.parts]), losses, rtol=1e-4, atol=1e-5)
    losses.sum().backward(), result.loss.backward()
    torch.testing.assert_close(ours.quantizers[0].codebook.codes.grad, theirs.layers[0]._codebook.embed.grad[0], rtol=1e-3, atol=1e-6)
    for layer, network, stage in zip(theirs.layers[1:], theirs.mlps, list(ours.quantizers)[1:]):
        torch.testing.assert_close(stage.codebook.codes.grad, layer._codebook.embed.grad[0], rtol=1e-3, atol=1e-6)
        for a, b in zip(stage.network.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    theirs.eval(), ours.eval()
    torch.testing.assert_close(ours.decode(indices), theirs.get_output_from_indices(indices), rtol=1e-4, atol=1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_quantizers: .*None"):
        build(num_quantizers=None)
    with pytest.raises(ValueError, match="codebook_size: expected 3.*2"):
        build(codebook_size=(4, 5))
    with pytest.raises(ValueError, match="depth.*-1"):
        CodeNetwork(6, depth=-1)
    with pytest.raises(ValueError, match="hidden_dim.*0"):
        CodeNetwork(6, hidden_dim=0)
    stage = ImplicitQuantizer(6, 20)
    with pytest.raises(ValueError, match=r"condition: expected shape \(3, 6\).*\(2, 6\)"):
        stage(torch.randn(3, 6), condition=torch.randn(2, 6))
    with pytest.raises(ValueError, match="x: .*D = 6.*5"):
        stage(torch.randn(3, 5))
