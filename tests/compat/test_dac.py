"""DAC's quantizers against the published formulas."""

import pytest
import torch
from torch import nn

from tests.compat.foreign import FOREIGN
from vqkit.compat.dac import ResidualVectorQuantize, VectorQuantize, weight_normed_conv


@pytest.mark.parametrize("layer", [nn.Conv1d, weight_normed_conv])
def test_vector_quantize(layer, assert_same):
    assert_same(FOREIGN.dac(10, 20, 4, layer), VectorQuantize(10, 20, 4, layer=layer), torch.randn(3, 10, 7))


def test_state_keys_are_those_of_checkpoints():
    convolution = [f"{name}.{part}" for name in ("in_proj", "out_proj") for part in ("bias", "weight_g", "weight_v")]
    assert list(VectorQuantize(10, 20, 4).state_dict()) == [*convolution, "codebook.weight"]


def run(quantizers, z, uses):
    """The residual formula, (z_q, codes, commitment, codebook)."""
    rest, total, codes, losses = z, 0, [], 0
    for place, quantizer in enumerate(quantizers):
        quantized, commitment, codebook, indices, _ = quantizer(rest)
        used = (place < uses).float()
        total, rest = total + quantized * used[:, None, None], rest - quantized
        codes.append(indices)
        losses = losses + torch.stack([(commitment * used).mean(), (codebook * used).mean()])
    return total, torch.stack(codes, 1), *losses


def test_residual_with_dropout():
    quantizer, z = ResidualVectorQuantize(10, 4, 20, [4, 4, 3, 2], quantizer_dropout=0.5), torch.randn(6, 10, 7)
    torch.manual_seed(3)
    uses = torch.randint(1, 5, (6,))
    uses[3:] = 4
    torch.manual_seed(3)
    z_q, codes, latents, commitment, codebook = quantizer(z)
    for got, expected in zip((z_q, codes, commitment, codebook), run(quantizer.quantizers, z, uses)):
        torch.testing.assert_close(got, expected)
    assert latents.shape == (6, 13, 7)


def test_residual_in_eval_mode():
    quantizer, z = ResidualVectorQuantize(10, 4, 20, 4).eval(), torch.randn(6, 10, 7)
    z_q, codes, latents, *_ = quantizer(z, n_quantizers=3)
    assert codes.shape == (6, 3, 7) and latents.shape == (6, 12, 7)
    torch.testing.assert_close(quantizer.from_codes(codes)[0], z_q)
    again, vectors, indices = quantizer.from_latents(latents)
    torch.testing.assert_close(again, z_q)
    assert torch.equal(indices, codes) and torch.equal(vectors, quantizer.from_codes(codes)[1])


def test_nan_spoils_nothing():
    quantizer, z = VectorQuantize(10, 20, 4), torch.randn(3, 10, 7)
    z[1, 2, 3] = torch.nan
    quantized, commitment, codebook, indices, latents = quantizer(z.requires_grad_())
    (quantized.square().sum() + commitment.sum() + codebook.sum()).backward()
    assert (indices == -1).sum() == 1 and commitment.isfinite().all() and not latents[1, :, 3].any()
    assert z.grad.isfinite().all() and not z.grad[1, :, 3].any()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())


def test_one_length_a_quantizer():
    with pytest.raises(ValueError, match="codebook_dim.*3 lengths"):
        ResidualVectorQuantize(10, 3, 20, [4, 4])
