"""enhancing-transformers' quantizer against the published formulas."""

import pytest
import torch

from tests.compat.foreign import FOREIGN
from vqkit.compat.vit_vqgan import VectorQuantizer


@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("residual", [{}, {"use_residual": True, "num_quantizers": 3}], ids=str)
def test_formula(use_norm, residual, assert_same):
    options = residual | dict(use_norm=use_norm)
    assert_same(FOREIGN.vit_vqgan(6, 20, **options), VectorQuantizer(6, 20, **options), torch.randn(3, 7, 6))


@pytest.mark.parametrize("residual", [{}, {"use_residual": True, "num_quantizers": 3}], ids=str)
def test_nan_spoils_nothing(residual):
    quantizer, z = VectorQuantizer(6, 20, **residual), torch.randn(3, 7, 6)
    z[1, 2, 3] = torch.nan
    z_q, loss, indices = quantizer(z.requires_grad_())
    (loss + z_q.sum()).backward()
    assert (indices[1, 2] == -1).all() and not z_q[1, 2].any() and z_q.isfinite().all()
    assert quantizer.embedding.weight.grad.isfinite().all() and not z.grad[1, 2].any()


def test_residual_needs_a_number():
    with pytest.raises(ValueError, match="num_quantizers"):
        VectorQuantizer(6, 20, use_residual=True)
