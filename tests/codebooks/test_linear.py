"""SimVQ: codes = transform(frozen), what learns and what does not, and what is kept in eval mode."""

import copy

import pytest
import torch

import vqkit
from vqkit.codebooks import LinearCodebook


def test_codes_are_the_frozen_vectors_under_the_map():
    codebook = LinearCodebook(2000, 6, frozen_dim=3)
    torch.testing.assert_close(codebook(), codebook.frozen @ codebook.transform.weight.T)
    assert codebook.frozen.shape == (2000, 3) and codebook.transform.bias is None
    assert abs(codebook.frozen.std().item() - 3**-0.5) < 0.02 and abs(codebook.frozen.mean().item()) < 0.03
    assert set(codebook.state_dict()) == {"frozen", "transform.weight"}
    own = LinearCodebook(9, 6, transform=torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)))
    torch.testing.assert_close(own(), own.transform(own.frozen))


def test_every_code_moves_though_few_were_chosen():
    quantizer = vqkit.Quantizer(4, 50, codebook=LinearCodebook(50, 4), commitment_weight=0.25)
    frozen, before = quantizer.codebook.frozen.clone(), quantizer.codes.detach().clone()
    x = torch.randn(3, 4, requires_grad=True)
    result = quantizer(x)
    codes = quantizer.codebook()
    expected = torch.nn.functional.mse_loss(codes[result.indices], x.detach()) + 0.25 * torch.nn.functional.mse_loss(
        x, codes[result.indices].detach()
    )
    torch.testing.assert_close(result.loss, expected)
    gradients = [torch.autograd.grad(loss, [x, quantizer.codebook.transform.weight]) for loss in (result.loss, expected)]
    torch.testing.assert_close(*gradients)
    result = quantizer(x)
    result.loss.backward()
    torch.optim.SGD(quantizer.parameters(), 0.1).step()
    assert (quantizer.codes != before).any(-1).all() and torch.equal(quantizer.codebook.frozen, frozen)


def test_it_learns_where_latents_are():
    torch.manual_seed(3)
    quantizer = vqkit.Quantizer(4, 64, codebook=LinearCodebook(64, 4))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.1)
    x = torch.randn(300, 4) * torch.tensor([5.0, 1, 0.1, 0.1])
    losses = []
    for _ in range(120):
        losses.append(quantizer(x).loss.detach())
        optimizer.zero_grad()
        quantizer(x).loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_eval_mode_keeps_the_codes_until_they_change():
    codebook = LinearCodebook(5, 4).eval()
    first = codebook()
    assert codebook() is first and not first.requires_grad
    with torch.no_grad():
        codebook.transform.weight.mul_(2)
    torch.testing.assert_close(codebook(), 2 * first)
    assert codebook.double()().dtype == torch.float64
    other = LinearCodebook(5, 4)
    codebook.float().load_state_dict(other.state_dict())
    assert torch.equal(codebook(), other.eval()())
    assert codebook.train()().requires_grad
    assert torch.equal(copy.deepcopy(codebook).eval()(), codebook.eval()())


def test_nothing_learns_in_eval_mode_or_by_observing():
    quantizer = vqkit.Quantizer(4, 9, codebook=LinearCodebook(9, 4))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(30, 4))
    quantizer.eval()(torch.randn(30, 4))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_and_round_trip(dtype):
    quantizer = vqkit.Quantizer(4, 9, codebook=LinearCodebook(9, 4)).to(dtype)
    x = torch.randn(30, 4, dtype=dtype)
    quantizer(x).loss.backward()
    result = quantizer.eval()(x)
    assert result.quantized.dtype == dtype and torch.equal(quantizer.decode(quantizer.encode(x)), result.quantized)


def test_autocast_does_not_touch_the_codes():
    codebook = LinearCodebook(9, 4)
    expected = codebook()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook(), expected) and torch.equal(codebook.eval()(), expected)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(training):
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(4, 9, codebook=LinearCodebook(9, 4), metric="cosine").train(training)
    x = torch.randn(20, 4, requires_grad=True)
    result = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    result.loss.backward()
    torch.testing.assert_close(result.loss, quantizer(x).loss)
    assert (quantizer.codebook.transform.weight.grad is not None) == training


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="frozen_dim: .*0"):
        LinearCodebook(4, 3, frozen_dim=0)
    with pytest.raises(ValueError, match="size: .*0"):
        LinearCodebook(0, 3)
    with pytest.raises(ValueError, match=r"transform: expected a result of shape \(4, 3\), got \(4, 5\)"):
        LinearCodebook(4, 3, transform=torch.nn.Linear(3, 5))()
