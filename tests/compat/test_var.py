"""VAR's quantizer against the published algorithms."""

import pytest
import torch
from torch.nn.functional import interpolate

from tests.compat.foreign import FOREIGN
from vqkit.compat.var import VectorQuantizer2

PATCHES = (1, 2, 3, 5)


@pytest.mark.parametrize("using_znorm", [True, False])
@pytest.mark.parametrize("shared", [0, 1, 2, 4])
def test_formula(using_znorm, shared, assert_same):
    arguments = dict(using_znorm=using_znorm, v_patch_nums=PATCHES, share_quant_resi=shared)
    assert_same(FOREIGN.var(20, 6, **arguments), VectorQuantizer2(20, 6, **arguments), torch.randn(2, 6, 5, 5), learns=False)


@pytest.fixture
def quantizer():
    quantizer = VectorQuantizer2(20, 6, False, v_patch_nums=PATCHES).eval()
    quantizer.eini(1.0)
    return quantizer


def test_indices_and_sums(quantizer):
    f = torch.randn(2, 6, 5, 5)
    indices, sums = quantizer.f_to_idxBl_or_fhat(f, to_fhat=False), quantizer.f_to_idxBl_or_fhat(f, to_fhat=True)
    assert [part.shape for part in indices] == [(2, 1), (2, 4), (2, 9), (2, 25)]
    torch.testing.assert_close(sums[-1], quantizer(f)[0])
    codes = [quantizer.embedding(part).mT.reshape(2, 6, p, p) for part, p in zip(indices, PATCHES)]
    for got, expected in zip(quantizer.embed_to_fhat(codes), sums):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(quantizer.embed_to_fhat(codes, last_one=True), sums[-1])


def test_inputs_of_the_next_scale(quantizer):
    f = torch.randn(2, 6, 5, 5)
    indices, sums = quantizer.f_to_idxBl_or_fhat(f, to_fhat=False), quantizer.f_to_idxBl_or_fhat(f, to_fhat=True)
    expected = [interpolate(total, size=(p, p), mode="area").flatten(2).mT for total, p in zip(sums, PATCHES[1:])]
    torch.testing.assert_close(quantizer.idxBl_to_var_input(indices), torch.cat(expected, 1))
    total = torch.zeros(2, 6, 5, 5)
    for scale, (part, p) in enumerate(zip(indices, PATCHES)):
        codes = quantizer.embedding(part).mT.reshape(2, 6, p, p)
        total, following = quantizer.get_next_autoregressive_input(scale, len(PATCHES), total, codes)
        torch.testing.assert_close(total, sums[scale])
        assert following.shape[-1] == PATCHES[min(scale + 1, 3)]
    assert VectorQuantizer2(20, 6, False, v_patch_nums=(5,)).idxBl_to_var_input([indices[-1]]) is None


def test_usage(quantizer):
    quantizer.train()
    _, used, _ = quantizer(torch.randn(2, 6, 5, 5), ret_usages=True)
    counts = quantizer.ema_vocab_hit_SV
    assert counts.sum(1).tolist() == [2, 8, 18, 50] and used == pytest.approx(((counts >= 0.2).float().mean(1) * 100).tolist())


def test_unsupported(quantizer):
    with pytest.raises(NotImplementedError, match="v_patch_nums"):
        quantizer.f_to_idxBl_or_fhat(torch.randn(2, 6, 5, 5), False, v_patch_nums=(1, 5))
    with pytest.raises(NotImplementedError, match="all_to_max_scale"):
        quantizer.embed_to_fhat([], all_to_max_scale=False)
    with pytest.raises(ValueError, match="v_patch_nums"):
        VectorQuantizer2(20, 6, False)
