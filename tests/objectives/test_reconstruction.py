"""Reconstruction losses against independent computations."""

import pytest
import torch
import torch.nn.functional as F

from vqkit.objectives import ReconstructionLoss, structural_loss


def windows(x, size):
    """Every size x size window, (B, C, positions, size * size)."""
    return x.unfold(2, size, 1).unfold(3, size, 1).flatten(4).flatten(2, 3)


def reference(x, y, scales):
    """The same loss, window by window, in float64 and with two-pass variances."""
    x, y = x.double() + 1, y.double() + 1
    terms = []
    for _ in range(scales):
        size = min(7, *x.shape[2:])
        a, b = windows(x, size), windows(y, size)
        ma, mb = a.mean(-1), b.mean(-1)
        va, vb = a.var(-1, correction=0), b.var(-1, correction=0)
        cov = ((a - ma[..., None]) * (b - mb[..., None])).mean(-1)
        c1, c2 = 0.02**2, 0.06**2
        score = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        terms.append(1 - score.mean())
        if min(x.shape[2:]) < 4:
            break
        x = halved(x)
        y = halved(y)
    return torch.stack(terms).mean()


def halved(x):
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 33, 21), (2, 3, 5, 9), (1, 3, 2, 2), (1, 3, 1, 4)])
@pytest.mark.parametrize("scales", [1, 3])
def test_structure_is_its_formula(shape, scales):
    torch.manual_seed(0)
    x = torch.rand(shape) * 2 - 1
    y = (x + 0.3 * torch.randn(shape)).clamp(-1, 1)
    torch.testing.assert_close(structural_loss(x, y, scales).double(), reference(x, y, scales), rtol=1e-4, atol=1e-5)


def test_structure_is_zero_for_equal_symmetric_and_grows_with_blur():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 40, 40) * 2 - 1
    assert structural_loss(x, x).abs() < 1e-6
    blurred = [F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False) for size in (3, 5, 9)]
    losses = [structural_loss(b, x) for b in blurred]
    assert 0 < losses[0] < losses[1] < losses[2] <= 2
    torch.testing.assert_close(structural_loss(x, blurred[0]), losses[0])


def test_structure_gradient():
    torch.manual_seed(0)
    x = torch.rand(1, 2, 9, 10, dtype=torch.float64, requires_grad=True)
    y = torch.rand(1, 2, 9, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: structural_loss(a, b, 2), (x, y))


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    x, y = (torch.rand(1, 3, 16, 16) * 2 - 1).bfloat16(), (torch.rand(1, 3, 16, 16) * 2 - 1).bfloat16()
    for loss in (structural_loss, lambda a, b: ReconstructionLoss("l2")(a, b)[0]):
        assert loss(x, y).dtype == torch.float32
        torch.testing.assert_close(loss(x, y), loss(x.float(), y.float()), rtol=0, atol=0)


@pytest.mark.parametrize(("pixel", "power"), [("l1", 1), ("l2", 2)])
def test_sum_of_terms(pixel, power):
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    expected = ((x - y).abs() ** power).mean()
    loss, terms = ReconstructionLoss(pixel)(x, y)
    assert set(terms) == {pixel}
    torch.testing.assert_close(loss, expected)
    loss, terms = ReconstructionLoss(pixel, structural_weight=0.5)(x, y)
    torch.testing.assert_close(loss, expected + 0.5 * structural_loss(x, y))
    torch.testing.assert_close(terms["structural"], structural_loss(x, y))


def test_arguments_that_do_not_fit():
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="pixel: got 'l3'"):
        ReconstructionLoss("l3")
    with pytest.raises(ValueError, match="structural_weight: got -1"):
        ReconstructionLoss(structural_weight=-1)
    with pytest.raises(ValueError, match="scales: got 0"):
        structural_loss(x, x, 0)
    with pytest.raises(ValueError, match="expected one shape"):
        ReconstructionLoss()(x, x[:, :1])
