"""The patch discriminator: its size, what a logit sees, and which pictures it mixes."""

import pytest
import torch

from vqkit.nn import PatchDiscriminator


def test_published_size():
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633


@pytest.mark.parametrize(("num_layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(num_layers, field):
    torch.manual_seed(0)
    network = PatchDiscriminator(4, num_layers).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = network(images)
    row, column = logits.shape[2] // 2, logits.shape[3] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, row, column], images)
    seen = gradient[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    assert rows.max() - rows.min() + 1 == field
    assert columns.max() - columns.min() + 1 == field


@pytest.mark.parametrize("num_layers", [1, 3])
def test_smallest_picture(num_layers):
    network = PatchDiscriminator(4, num_layers, normalization="group")
    size = network.minimum_size
    assert network(torch.randn(2, 3, size, size + 1)).shape[:3] == (2, 1, 1)
    with pytest.raises(ValueError, match=f"expected at least {size} pixels"):
        network(torch.randn(2, 3, size, size - 1))


def test_group_normalisation_keeps_pictures_apart():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    apart = PatchDiscriminator(8, 2, normalization="group")
    torch.testing.assert_close(apart(images)[:2], apart(images[:2]))
    mixing = PatchDiscriminator(8, 2)
    assert not torch.allclose(mixing(images)[:2], mixing(images[:2]), atol=1e-3)


def test_every_parameter_learns_and_the_start_repeats():
    torch.manual_seed(5)
    network = PatchDiscriminator(8, 2)
    images = torch.randn(2, 3, 24, 24)
    logits = network(images)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    torch.manual_seed(5)
    torch.testing.assert_close(PatchDiscriminator(8, 2)(images), logits, rtol=0, atol=0)


def test_unknown_normalization():
    with pytest.raises(ValueError, match="normalization: got 'layer'"):
        PatchDiscriminator(normalization="layer")
