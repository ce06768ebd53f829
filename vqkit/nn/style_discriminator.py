"""The residual discriminator of StyleGAN2, which ViT-VQGAN trains against."""

from math import log2, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualizedConv2d(nn.Conv2d):
    """A convolution whose weights are drawn from N(0, 1) and scaled by 1 / sqrt(fan in) when used.

    Adam moves every weight by about the learning rate; scaled at use, all layers then learn at one speed.
    Source: Karras et al., Progressive Growing of GANs, arXiv 1710.10196, section 4.1.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.gain = 1 / sqrt(self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias, self.stride, self.padding)


class EqualizedLinear(nn.Linear):
    """As `EqualizedConv2d`."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.gain = 1 / sqrt(self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class _Block(nn.Module):
    """Two 3x3 convolutions and a halving, beside a 1x1 shortcut; the sum divided by sqrt(2) keeps the variance."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3, stride=2)
        self.shortcut = EqualizedConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _activated(self.conv2(_blurred(_activated(self.conv1(x)), 2)))
        return (y + self.shortcut(_blurred(x, 1)[..., ::2, ::2])) / sqrt(2)


class StyleDiscriminator(nn.Module):
    """Pictures (B, in_channels, R, R) to one logit a picture (B, 1); positive means real.

    A 1x1 convolution, residual halvings down to 4x4, the standard deviation over groups of pictures as one more channel, a 3x3
    convolution and two linear layers; leaky ReLU 0.2, blurred halvings, equalised learning rates.

    Args:
        resolution: R, a power of two, at least 8.
        channels: the widths are min(512, channels * 512 / side) at each side; 64 is the published width, 32 halves it.
        group: pictures whose spread is one channel's value, at most; the largest divisor of the batch up to it is taken. The
            pictures of a batch see one another through it, so more ranks with smaller batches give other numbers.

    Raises ValueError for pictures of another size.
    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958, section 4 and appendix B.
    """

    def __init__(self, resolution: int, channels: int = 64, *, in_channels: int = 3, group: int = 4):
        super().__init__()
        if resolution < 8 or resolution & (resolution - 1):
            raise ValueError(f"resolution: expected a power of two of at least 8, got {resolution}")
        self.resolution, self.group = resolution, group
        self.minimum_size = resolution
        widths = [min(512, max(4, channels * 512 // (resolution >> level))) for level in range(int(log2(resolution)) - 1)]
        self.from_pixels = EqualizedConv2d(in_channels, widths[0], 1)
        self.blocks = nn.Sequential(*(_Block(narrow, wide) for narrow, wide in zip(widths, widths[1:])))
        self.conv = EqualizedConv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.linear = EqualizedLinear(widths[-1] * 16, widths[-1])
        self.logit = EqualizedLinear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != (self.resolution, self.resolution):
            raise ValueError(f"images: got {tuple(images.shape)}, expected {self.resolution}x{self.resolution} pixels")
        x = self.blocks(_activated(self.from_pixels(images)))
        x = _activated(self.conv(torch.cat([x, self._spread(x)], 1)))
        return self.logit(_activated(self.linear(x.flatten(1))))

    def _spread(self, x: Tensor) -> Tensor:
        """Mean standard deviation over the pictures of a group, as a map (B, 1, h, w); source: arXiv 1710.10196, section 3."""
        batch = x.shape[0]
        size = max(g for g in range(1, min(self.group, batch) + 1) if batch % g == 0)
        grouped = x.float().view(size, batch // size, *x.shape[1:])
        spread = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return spread.repeat(size).to(x.dtype).view(batch, 1, 1, 1).expand(-1, -1, *x.shape[-2:])


def _activated(x: Tensor) -> Tensor:
    # The factor makes up for the variance that the negative half loses.
    return F.leaky_relu(x, 0.2) * sqrt(2)


def _blurred(x: Tensor, padding: int) -> Tensor:
    """Convolved with (1, 3, 3, 1) / 8 in both directions, so that what is halved next does not alias; 2 padding - 3 pixels larger."""
    line = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    channels = x.shape[1]
    x = F.conv2d(F.pad(x, (padding,) * 4), line.view(1, 1, 1, 4).expand(channels, 1, 1, 4), groups=channels)
    return F.conv2d(x, line.view(1, 1, 4, 1).expand(channels, 1, 4, 1), groups=channels)
