"""LlamaGen's quantizer against the published formulas."""

import pytest
import torch
from torch.nn.functional import normalize

from tests.compat.foreign import FOREIGN
from vqkit.compat.llamagen import VectorQuantizer


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_formula(l2_norm, ratio, assert_same):
    arguments = (20, 6, 0.25, ratio, l2_norm, True)
    assert_same(FOREIGN.llamagen(*arguments), VectorQuantizer(*arguments), 0.3 * torch.randn(3, 6, 4, 5))


def test_codes_start_on_the_sphere():
    weight = VectorQuantizer(20, 6, 0.25, 0.0, True, False).embedding.weight
    torch.testing.assert_close(weight.norm(dim=-1), torch.ones(20))


def test_usage_of_the_latest_indices():
    quantizer = VectorQuantizer(20, 2, 0.25, 0.0, False, True)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.arange(20.0)[:, None].expand(20, 2))
    many = torch.tensor([3.0, 7.0]).repeat(40000)[None, None, None].expand(1, 2, 1, 80000)
    _, (*_, used), _ = quantizer(many)
    assert quantizer.codebook_used.shape == (65536,) and used == 2 / 20
    assert quantizer.eval()(many)[1] == (None, None, None, 0)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_entries(l2_norm):
    quantizer = VectorQuantizer(20, 6, 0.25, 0.0, l2_norm, False).eval()
    torch.nn.init.normal_(quantizer.embedding.weight)
    z_q, _, (_, _, indices) = quantizer(torch.randn(3, 6, 4, 5))
    torch.testing.assert_close(quantizer.get_codebook_entry(indices, (3, 6, 4, 5)), z_q)
    torch.testing.assert_close(quantizer.get_codebook_entry(indices, (3, 4, 5, 6), channel_first=False), z_q.movedim(1, -1))
    codes = quantizer.embedding.weight[indices]
    torch.testing.assert_close(quantizer.get_codebook_entry(indices), normalize(codes, dim=-1) if l2_norm else codes)
