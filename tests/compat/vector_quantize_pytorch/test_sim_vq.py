"""SimVQ against the original: results and gradients over its settings; and the swap by accelerate."""

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import SimVQ

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "plain": {},
    "straight-through": dict(rotation_trick=False),
    "weights": dict(input_to_quantize_commit_loss_weight=0.7, commitment_weight=0.3),
    "frozen dimension": dict(frozen_codebook_dim=5),
    "transform": dict(codebook_transform=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))),
    "start": dict(init_fn=torch.tanh),
}


def made(cls, settings, **more):
    arguments = settings | more
    if "codebook_transform" in arguments:
        arguments["codebook_transform"] = arguments["codebook_transform"]()
    return cls(dim=8, codebook_size=30, **arguments)


@pytest.mark.parametrize("channel_first, shape", [(False, (3, 7, 8)), (False, (2, 3, 5, 8)), (False, (6, 8)), (True, (3, 8, 7)), (True, (2, 8, 3, 4))])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_and_gradients_equal_the_original(settings, channel_first, shape, assert_same):
    torch.manual_seed(3)
    original, ours = (made(cls, settings, channel_first=channel_first) for cls in (peer.SimVQ, SimVQ))
    x = torch.randn(shape)
    assert_same(original, ours, x, steps=2)
    quantized, indices, _ = ours(x)
    torch.testing.assert_close(ours.codebook, original.codebook)
    assert torch.equal(ours.indices_to_codes(indices), quantized)
    # The original gathers along one axis only.
    if indices.ndim > 1:
        torch.testing.assert_close(original.indices_to_codes(indices), quantized)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_seed_gives_the_same_start(settings):
    modules = []
    for cls in (peer.SimVQ, SimVQ):
        torch.manual_seed(5)
        modules.append(made(cls, settings).state_dict())
    assert modules[0].keys() == modules[1].keys()
    for name, value in modules[0].items():
        torch.testing.assert_close(modules[1][name], value)


def test_decoding_takes_rows_of_the_whole_codebook():
    torch.manual_seed(0)
    ours = SimVQ(4, 6, codebook_transform=nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=0)), channel_first=True)
    indices = torch.tensor([[0, 5, -1], [2, 2, 1]])
    codes = ours.indices_to_codes(indices)
    expected = ours.codebook[indices.clamp(min=0)].where(indices[..., None] >= 0, 0.0).movedim(-1, 1)
    assert torch.equal(codes, expected)
    codes.square().sum().backward()
    assert ours.code_transform[0].weight.grad.any() and ours.frozen_codebook.grad is None


def test_a_row_that_is_not_finite_teaches_nothing():
    ours = SimVQ(4, 6)
    x = torch.randn(1, 5, 4)
    x[0, 2, 1] = torch.inf
    quantized, indices, loss = ours(x)
    (quantized.sum() + loss).backward()
    assert indices[0, 2] == -1 and not quantized[0, 2].any() and loss.isfinite()
    assert ours.code_transform.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dim", "codebook_size", "frozen_codebook_dim"])
def test_arguments_that_do_not_fit(name):
    with pytest.raises(ValueError, match=name):
        SimVQ(**(dict(dim=4, codebook_size=8) | {name: 0}))


def test_compiles_whole():
    ours = SimVQ(4, 6)
    x = torch.randn(2, 5, 4)
    for found, expected in zip(torch.compile(ours, fullgraph=True, backend="eager")(x), ours(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_swaps_the_original(settings, channel_first):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Identity(), made(peer.SimVQ, settings, channel_first=channel_first))
    x = torch.randn(2, 8, 8)
    expected, parameters = model(x), list(model.parameters())
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], SimVQ) and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for found, value in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    vqkit.restore(model)
    assert type(model[1]) is peer.SimVQ
