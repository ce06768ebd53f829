"""The recurrent generator of codes: its formula step by step, what a count changes, gradients."""

import pytest
import torch

from vqkit.nn import CodeGenerator


def cell(parameters, layer, taken, hidden, memory):
    """One step of one layer by the definition of an LSTM, in float64."""
    w_in, w_hidden, b_in, b_hidden = (parameters[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    enter, forget, new, leave = (w_in @ taken + b_in + w_hidden @ hidden + b_hidden).chunk(4)
    memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * memory.tanh(), memory


@pytest.mark.parametrize("count", [1, 4, 5, 9, 14])
def test_it_is_its_formula(count):
    generator, codes = CodeGenerator(3).double().eval(), torch.randn(5, 3, dtype=torch.float64)
    state = [(codes.new_zeros(3), codes.new_zeros(3))] * 2

    def step(network, taken):
        parameters = dict(network.named_parameters())
        for layer in range(2):
            state[layer] = cell(parameters, layer, taken, *state[layer])
            taken = state[layer][0]
        return taken

    for code in codes:
        step(generator.encoder, code)
    expected = []
    for i in range(1, count + 1):
        taken = codes[(i + 1) // 2 - 1] if i % 2 and i <= 2 * 5 else expected[-1]
        expected.append(generator.to_code(step(generator.decoder, taken)))
    torch.testing.assert_close(generator(codes, count), torch.stack(expected))


def test_a_larger_count_goes_on():
    generator, codes = CodeGenerator(4).eval(), torch.randn(6, 4)
    torch.testing.assert_close(generator(codes, 20)[:7], generator(codes, 7))


def test_dropout_is_for_training_only():
    generator, codes = CodeGenerator(4), torch.randn(6, 4)
    assert not torch.equal(generator(codes, 5), generator(codes, 5))
    generator.eval()
    assert torch.equal(generator(codes, 5), generator(codes, 5))
    single = CodeGenerator(4, layers=1)
    assert torch.equal(single(codes, 5), single(codes, 5))


def test_every_weight_and_every_source_code_has_a_gradient():
    generator, codes = CodeGenerator(4, dropout=0.0), torch.randn(6, 4, requires_grad=True)
    generator(codes, 3).square().sum().backward()
    assert codes.grad.abs().sum(1).min() > 0
    assert all(p.grad.abs().sum() > 0 for p in generator.parameters())


def test_errors_name_what_does_not_fit():
    generator = CodeGenerator(4)
    with pytest.raises(ValueError, match=r"codes: expected \(K, 4\).*\(6, 5\)"):
        generator(torch.randn(6, 5), 2)
    with pytest.raises(ValueError, match="codes: .*\\(0, 4\\)"):
        generator(torch.randn(0, 4), 2)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        generator(torch.randn(6, 4), 0)
