"""Structural similarity of two maps, under any averaging window."""

from collections.abc import Callable

from torch import Tensor


def similarity_map(x: Tensor, y: Tensor, average: Callable[[Tensor], Tensor], data_range: float) -> Tensor:
    """Structural similarity at each position: 1 where both windows agree, -1 at worst.

        SSIM = (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2)),
        C1 = (0.01 R)^2, C2 = (0.03 R)^2, with means, variances and covariance under the window.

    Args:
        x, y: (B, C, H, W) of one floating dtype with black at 0, which the constants assume.
        average: the window, a linear map that preserves constants and may crop.
        data_range: R, the value of white.

    Returns what `average` returns, (B, C, H', W'). Differentiable in x and y.
    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, equation 13.
    """
    c1 = (0.01 * data_range) ** 2
    c2 = (0.03 * data_range) ** 2
    mean_x, mean_y = average(x), average(y)
    # rounding may leave a variance slightly below zero
    variance_x = (average(x * x) - mean_x * mean_x).clamp_min(0)
    variance_y = (average(y * y) - mean_y * mean_y).clamp_min(0)
    covariance = average(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)
