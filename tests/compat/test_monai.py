"""MONAI's quantizers against the published formulas."""

import math

import pytest
import torch

from tests.compat.foreign import FOREIGN
from vqkit.compat.monai import EMAQuantizer, VectorQuantizer


@pytest.mark.parametrize("spatial", [2, 3])
def test_formula(spatial, assert_same):
    arguments = dict(commitment_cost=0.4, decay=0.9, epsilon=1e-4)
    assert_same(FOREIGN.monai(spatial, 20, 6, **arguments), EMAQuantizer(spatial, 20, 6, **arguments), torch.randn(2, 6, *[3] * spatial))


def test_quantize_and_embed():
    quantizer, x = EMAQuantizer(3, 20, 6, embedding_init="kaiming_uniform").eval(), torch.randn(2, 6, 3, 4, 5)
    quantized, _, indices = quantizer(x)
    rows, one_hot, again = quantizer.quantize(x)
    assert torch.equal(again, indices) and torch.equal(rows, x.movedim(1, -1).reshape(-1, 6))
    assert torch.equal(one_hot.to_dense().argmax(1), indices.flatten()) and torch.equal(quantizer.embed(indices), quantized)


def test_wrapper():
    wrapper, x = VectorQuantizer(EMAQuantizer(2, 20, 6)).eval(), torch.randn(2, 6, 3, 4)
    loss, quantized = wrapper(x)
    assert torch.equal(wrapper.embed(wrapper.quantize(x)), quantized) and loss.ndim == 0
    share = torch.bincount(wrapper.quantize(x).flatten(), minlength=20) / 24
    assert math.isclose(wrapper.perplexity, torch.special.entr(share).sum().exp(), rel_tol=1e-5)


def test_bad_arguments():
    with pytest.raises(NotImplementedError, match="ddp_sync"):
        EMAQuantizer(2, 20, 6, ddp_sync=False)
    with pytest.raises(ValueError, match="embedding_init.*'zeros'"):
        EMAQuantizer(2, 20, 6, embedding_init="zeros")
    with pytest.raises(ValueError, match="spatial_dims.*1"):
        EMAQuantizer(1, 20, 6)
    with pytest.raises(ValueError, match="inputs.*2 spatial"):
        EMAQuantizer(2, 20, 6)(torch.randn(2, 6, 3))
