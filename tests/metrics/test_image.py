"""PSNR and SSIM against torchmetrics, picture by picture."""

import pytest
import torch

from vqkit.metrics import psnr, ssim


def pair(shape, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = (x + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return y * (high - low) + low, x * (high - low) + low


SHAPES = [(3, 3, 33, 47), (2, 1, 64, 20), (1, 3, 11, 11), (2, 3, 6, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_torchmetrics(shape):
    theirs = pytest.importorskip("torchmetrics.functional.image")
    y, x = pair(shape)
    expected = theirs.structural_similarity_index_measure(y, x, data_range=1.0, reduction="none").reshape(-1)
    torch.testing.assert_close(ssim(y, x, 1), expected, rtol=1e-9, atol=1e-12)
    expected = theirs.peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
    # torchmetrics takes its logarithm's base in float32
    torch.testing.assert_close(psnr(y, x, 1), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_ranges_agree(metric):
    y, x = pair((2, 3, 16, 19))
    expected = metric(y, x, 1)
    for data_range, scale, low in [(2, 2, -1), ((-1, 1), 2, -1), (255, 255, 0), ((0.0, 255.0), 255, 0), ((3, 7), 4, 3)]:
        torch.testing.assert_close(metric(y * scale + low, x * scale + low, data_range), expected)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_picture_does_not_depend_on_its_batch(metric):
    y, x = pair((3, 3, 17, 16))
    values = metric(y, x, 1)
    assert values.dtype == torch.float64
    for index in range(3):
        torch.testing.assert_close(values[index : index + 1], metric(y[index : index + 1], x[index : index + 1], 1))
    assert metric(y[:0], x[:0], 1).shape == (0,)


def test_identical_pictures():
    x = torch.rand(2, 3, 16, 16)
    assert psnr(x, x, 1).tolist() == [100.0, 100.0]
    torch.testing.assert_close(ssim(x, x, 1), torch.ones(2, dtype=torch.float64))
    flat = torch.full((1, 3, 16, 16), 0.5)
    torch.testing.assert_close(ssim(flat, flat, 1), torch.ones(1, dtype=torch.float64))


def test_psnr_by_hand():
    x = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    torch.testing.assert_close(psnr(x + 255, x, 255), torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(psnr(x + 1, x, 255), torch.tensor([48.1308036086791], dtype=torch.float64))


def test_grey_is_the_similarity_of_luma():
    y, x = pair((2, 3, 20, 20))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    luma = [torch.einsum("bchw,c->bhw", t, weights)[:, None] for t in (y, x)]
    torch.testing.assert_close(ssim(y, x, 1, grey=True), ssim(*luma, 1))
    grey = [t[:, :1].expand(-1, 3, -1, -1) for t in (y, x)]
    torch.testing.assert_close(ssim(*grey, 1, grey=True), ssim(*grey, 1))


def test_arguments_that_do_not_fit():
    x = torch.rand(1, 3, 16, 16)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="expected one shape"):
            metric(x, x[:, :, :8], 1)
        for data_range in (0, -1, (1, 1), (1, -1)):
            with pytest.raises(ValueError, match="data_range: got"):
                metric(x, x, data_range)
    with pytest.raises(ValueError, match="at least 6"):
        ssim(x[:, :, :5], x[:, :, :5], 1)
    with pytest.raises(ValueError, match="got 1 channels"):
        ssim(x[:, :1], x[:, :1], 1, grey=True)
