"""The choice of a candidate a picture: scores, Gumbel-softmax and its gradient, who learns, and indices that carry the choice."""

import copy

import pytest
import torch

from vqkit.quantizers import AdaptiveQuantizer, Quantizer


def make(**options):
    torch.manual_seed(2)
    return AdaptiveQuantizer(6, 48, **({"code_dims": (2, 4, 6)} | options))


def scores_of(quantizer, x, mask):
    """By the formula, picture by picture, in float64."""
    query, value, bias = (t.double() for t in (quantizer.query.weight, quantizer.value.weight, quantizer.value.bias))
    found = []
    for picture, keep in zip(x.double().reshape(len(x), -1, 6), mask.reshape(len(x), -1)):
        rows = picture[keep]
        attention = torch.softmax(rows @ query.T / 6**0.5, 0)
        found.append((attention * (rows @ value.T + bias)).sum(0))
    return torch.stack(found)


def test_scores_are_their_formula_and_eval_takes_the_largest():
    quantizer = make().eval()
    x, mask = torch.randn(40, 3, 4, 6) * 3, torch.rand(40, 3, 4) > 0.3
    expected = scores_of(quantizer, x, mask)
    torch.testing.assert_close(quantizer._scores(x, mask), expected.float())
    choice = quantizer.choose(x, mask)
    assert torch.equal(choice, expected.argmax(-1)) and len(set(choice.tolist())) == 3
    result = quantizer(x, mask)
    starts = torch.tensor([0, 24, 36])
    for picture in range(40):
        alone = quantizer.candidates[choice[picture]]
        wanted = alone(x[picture], mask[picture])
        assert torch.equal(result.quantized[picture], wanted.quantized)
        assert torch.equal(result.indices[picture], (wanted.indices + starts[choice[picture]]).where(mask[picture], -1))
    assert quantizer.codebook_sizes == (24 + 12 + 8,)
    assert torch.equal(result.counts, torch.bincount(result.indices[mask], minlength=44))


def test_loss_is_the_mean_over_rows_of_what_they_commit_to():
    quantizer = make().eval()
    x = torch.randn(20, 5, 6) * 3
    choice, errors = quantizer.choose(x), []
    for picture, number in zip(x, choice):
        candidate = quantizer.candidates[number]
        rows = candidate.project_in(picture)
        errors.append((rows - candidate.codes[candidate.encode(picture)]).square().mean())
    result = quantizer(x)
    torch.testing.assert_close(result.losses["commitment"], torch.stack(errors).mean())
    torch.testing.assert_close(result.loss, 0.25 * torch.stack(errors).mean())


def test_gradient_is_that_of_the_softmax_over_all_candidates():
    quantizer = make(temperature=0.7).double()
    x, weights = torch.randn(9, 5, 6, dtype=torch.float64), torch.randn(9, 5, 6, dtype=torch.float64)
    twin = copy.deepcopy(quantizer)
    torch.manual_seed(3)
    result = quantizer(x)
    (result.quantized * weights).sum().backward()
    torch.manual_seed(3)
    noise = -torch.empty(9, 3, dtype=torch.float64).exponential_().log()
    scores = scores_of(twin, x, torch.ones(9, 5, dtype=torch.bool)) + noise
    twin.eval()
    outputs = torch.stack([candidate(x).quantized for candidate in twin.candidates], 1).detach()
    chosen = outputs[torch.arange(9), scores.argmax(-1)]
    torch.testing.assert_close(result.quantized, chosen)
    (torch.einsum("bi,bild->bld", (scores / 0.7).softmax(-1), outputs) * weights).sum().backward()
    for name in ("query.weight", "value.weight", "value.bias"):
        torch.testing.assert_close(quantizer.get_parameter(name).grad, twin.get_parameter(name).grad)
        assert quantizer.get_parameter(name).grad.abs().sum() > 0


def test_a_candidate_learns_from_the_pictures_that_chose_it():
    quantizer = make()
    with torch.no_grad():
        quantizer.value.bias.copy_(torch.tensor([-1e4, 1e4, -1e4]))
    plain = Quantizer(6, 12, codebook_dim=4, decay=0.99)
    plain.load_state_dict(quantizer.candidates[1].state_dict())
    idle = [copy.deepcopy(quantizer.candidates[number].codebook.state_dict()) for number in (0, 2)]
    for _ in range(3):
        x = torch.randn(4, 8, 6)
        plain(x)
        result = quantizer(x)
        assert result.indices.min() >= 24 and result.indices.max() < 36
    torch.testing.assert_close(quantizer.candidates[1].codebook.state_dict(), plain.codebook.state_dict())
    for number, before in zip((0, 2), idle):
        torch.testing.assert_close(quantizer.candidates[number].codebook.codes, before["codes"])
    (result.loss + result.quantized.sum()).backward()
    # DistributedDataParallel waits for a gradient of every parameter.
    assert all(p.grad is not None for p in quantizer.parameters())


def test_decode_takes_pictures_of_several_candidates():
    quantizer = make().eval()
    indices = torch.tensor([[0, 23, 24, -1, 35, 36, 43]])
    found = quantizer.decode(indices)
    for place, (number, own) in enumerate([(0, 0), (0, 23), (1, 0), (None, None), (1, 11), (2, 0), (2, 7)]):
        wanted = torch.zeros(6) if number is None else quantizer.candidates[number].decode(torch.tensor(own))
        torch.testing.assert_close(found[0, place], wanted)


def test_the_draw_follows_the_scores():
    quantizer = make()
    with torch.no_grad():
        quantizer.value.weight.zero_()
        quantizer.value.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    result = quantizer(torch.randn(4000, 1, 6))
    shares = [part.sum() / 4000 for part in result.counts.split([24, 12, 8])]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.03)


def test_errors_name_what_does_not_fit():
    for options, message in [
        ({"code_dims": (5,)}, r"code_dims: expected divisors of capacity = 48.*\(5,\)"),
        ({"code_dims": ()}, "code_dims: "),
        ({"code_dims": (0,)}, "code_dims: "),
        ({"temperature": 0}, "temperature: expected more than 0"),
        ({"decay": 2}, "decay: "),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="dim, capacity: expected at least 1, got 0 and 48"):
        AdaptiveQuantizer(0, 48, code_dims=(4,))
    quantizer = make()
    with pytest.raises(ValueError, match="x: expected a first dimension that counts the pictures"):
        quantizer(torch.randn(6))
    with pytest.raises(IndexError, match="indices: "):
        quantizer.decode(torch.tensor([[44]]))
