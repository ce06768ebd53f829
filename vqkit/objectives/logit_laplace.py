"""The logit-Laplace likelihood: a distribution over pixels whose range is exactly that of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels in [0, 1] are squeezed into [EPSILON, 1 - EPSILON], where the logit is finite.
EPSILON = 0.1


def logit_laplace_loss(mean: Tensor, log_scale: Tensor, images: Tensor) -> Tensor:
    """Mean negative log likelihood of pictures, in nats a value.

        -ln p(x) = |logit(x') - mean| / b + ln(2 b x' (1 - x')),  b = exp(log_scale),  x' = (1 - 2 EPSILON) x + EPSILON

    Args:
        mean, log_scale: (B, C, H, W) floating; gradients reach both. Scales below exp(-7) count as that.
        images: (B, C, H, W) in [-1, 1]; x is their map to [0, 1].

    Returns a scalar in float32 or better. Raises ValueError where shapes differ.
    Source: Ramesh et al., Zero-Shot Text-to-Image Generation, arXiv 2102.12092, appendix A.3, equation 2. The bound on the scale is
    ours: without it one flat patch can make the loss as negative as it likes.
    """
    if not mean.shape == log_scale.shape == images.shape:
        raise ValueError(f"mean, log_scale, images: expected one shape, got {', '.join(str(tuple(t.shape)) for t in (mean, log_scale, images))}")
    precision = torch.promote_types(mean.dtype, torch.float32)
    mean, log_scale, images = mean.to(precision), log_scale.to(precision).clamp(min=-7), images.to(precision)
    pixels = (1 - 2 * EPSILON) * (images + 1) / 2 + EPSILON
    distance = (pixels.logit() - mean).abs() * (-log_scale).exp()
    return (distance + log_scale + (2 * pixels * (1 - pixels)).log()).mean()


def logit_laplace_picture(mean: Tensor) -> Tensor:
    """The picture at the distribution's median, in about [-1, 1], from mean (B, C, H, W); differentiable."""
    return 2 * (F.sigmoid(mean) - EPSILON) / (1 - 2 * EPSILON) - 1
