"""Picture metrics, one value a picture, so that a mean does not depend on how pictures were batched."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.objectives.structure import similarity_map

PSNR_CEILING = 100.0
DataRange = float | tuple[float, float]
_WINDOW, _SIGMA = 11, 1.5


def psnr(reconstruction: Tensor, images: Tensor, data_range: DataRange) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB.

        PSNR = 10 log10(R^2 / mean (x^ - x)^2), the mean over all channels and positions of one picture

    Args:
        reconstruction, images: (B, C, H, W) of any dtype, 8-bit included.
        data_range: the lowest and the highest value, R apart, such as (-1, 1), (0, 1) or (0, 255). A single number is R:
            2 stands for (-1, 1), any other for (0, R).

    Returns (B,) float64, at most 100 (`PSNR_CEILING`), which stands for identical pictures so that means stay finite.
    No picture: (0,). Raises ValueError for shapes that differ or an empty range.
    """
    low, high = _limits(data_range)
    reconstruction, images = _pair(reconstruction, images)
    error = (reconstruction - images).square().mean((1, 2, 3))
    return (10 * torch.log10((high - low) ** 2 / error)).clamp_max(PSNR_CEILING)


def ssim(reconstruction: Tensor, images: Tensor, data_range: DataRange, *, grey: bool = False) -> Tensor:
    """Structural similarity of each picture: Gaussian window of 11x11 pixels, sigma 1.5, at every position.

    At the border the picture is reflected, as torchmetrics does; the original crops instead.

    In colour (the default) the value is the mean over the channels; with `grey=True` the pictures are first reduced to
    ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114 B, as the VQCT paper evaluates. The two are not comparable.

    Args:
        reconstruction, images: (B, C, H, W) of any dtype, sides of at least 6; C = 3 for grey.
        data_range: as in `psnr`. SSIM takes black as 0, so the lowest value is subtracted first.

    Returns (B,) float64, 1 for identical pictures.
    Raises ValueError for shapes that differ, sides below 6, an empty range, or grey without three channels.
    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """
    low, high = _limits(data_range)
    reconstruction, images = _pair(reconstruction, images)
    shape = tuple(images.shape)
    if min(shape[2:]) <= _WINDOW // 2:
        raise ValueError(f"images: got shape {shape}, expected height and width of at least {_WINDOW // 2 + 1}")
    if grey and shape[1] != 3:
        raise ValueError(f"images: got {shape[1]} channels, expected 3 for grey=True")
    if grey:
        luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        reconstruction, images = (reconstruction * luma).sum(1, True), (images * luma).sum(1, True)
    return similarity_map(reconstruction - low, images - low, _gaussian_average, high - low).mean((1, 2, 3))


def _gaussian_average(x: Tensor) -> Tensor:
    """Separable Gaussian window over the reflected picture, (B, C, H, W) -> the same."""
    margin = _WINDOW // 2
    positions = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - margin
    window = torch.exp(-positions.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    planes = F.pad(x, (margin,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.reshape(x.shape)


def _limits(data_range: DataRange) -> tuple[float, float]:
    if isinstance(data_range, (int, float)):
        data_range = (-1.0, 1.0) if data_range == 2 else (0.0, float(data_range))
    low, high = data_range
    if not low < high:
        raise ValueError(f"data_range: got {data_range}, expected (low, high) with low below high, or a positive number")
    return low, high


def _pair(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    if reconstruction.shape != images.shape or images.dim() != 4:
        raise ValueError(
            f"reconstruction, images: got {tuple(reconstruction.shape)} and {tuple(images.shape)}, "
            "expected one shape (B, C, H, W)"
        )
    return reconstruction.double(), images.double()
