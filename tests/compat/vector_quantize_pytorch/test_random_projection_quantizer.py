"""RandomProjectionQuantizer against the original: labels, cross-entropy and its gradient; and the swap by accelerate."""

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import RandomProjectionQuantizer

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "plain": {},
    "codebooks": dict(num_codebooks=3),
    "raw": dict(norm=False),
    "two, raw": dict(num_codebooks=2, norm=False),
    "passed on": dict(decay=0.5, commitment_weight=0.1),
}


def made(cls, settings):
    torch.manual_seed(5)
    return cls(dim=12, codebook_size=40, codebook_dim=6, **settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_labels_equal_the_original(settings):
    original, ours = (made(cls, settings) for cls in (peer.RandomProjectionQuantizer, RandomProjectionQuantizer))
    # The original learns from nothing either, but only after its first call.
    assert original.state_dict().keys() == ours.state_dict().keys()
    ours.load_state_dict(original.state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = 3 * torch.randn(4, 25, 12) + 1
    labels = ours.train()(x)
    assert torch.equal(labels, original(x)) and labels.dtype == torch.int64
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert labels.unique().numel() > 10


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_cross_entropy_equals_the_original(settings):
    original, ours = (made(cls, settings) for cls in (peer.RandomProjectionQuantizer, RandomProjectionQuantizer))
    ours.load_state_dict(original.state_dict())
    x = torch.randn(4, 25, 12)
    targets = torch.randint(40, original(x).shape)
    found = []
    for module in (original, ours):
        given = x.clone().requires_grad_()
        loss = module(given, targets)
        loss.backward()
        found.append((loss.detach(), given.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("number", [1, 2])
def test_the_dtype_and_rows_that_are_not_finite(number):
    ours = made(RandomProjectionQuantizer, dict(num_codebooks=number))
    x = torch.randn(2, 9, 12)
    x[0, 3, 1] = torch.nan
    labels = ours(x)
    assert (labels[0, 3] == -1).all() and (labels[1] >= 0).all()
    half = ours.bfloat16()(x.bfloat16().float())
    assert ours.rand_projs.dtype == torch.float32 and half.shape == labels.shape
    if number == 1:
        assert torch.equal(half, made(RandomProjectionQuantizer, {})(x.bfloat16().float()))


def test_what_is_not_supported_says_so():
    with pytest.raises(NotImplementedError, match="sync_codebook"):
        made(RandomProjectionQuantizer, dict(sync_codebook=False))
    with pytest.raises(NotImplementedError, match="kmeans_init"):
        made(RandomProjectionQuantizer, dict(kmeans_init=True))
    with pytest.raises(ValueError, match="codebook_dim"):
        RandomProjectionQuantizer(dim=4, codebook_size=8, codebook_dim=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_swaps_the_original(settings):
    model = nn.Sequential(nn.Identity(), made(peer.RandomProjectionQuantizer, settings))
    x = torch.randn(4, 25, 12)
    expected = model(x)
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], RandomProjectionQuantizer) and torch.equal(model(x), expected)
    vqkit.restore(model)
    assert type(model[1]) is peer.RandomProjectionQuantizer and torch.equal(model(x), expected)
