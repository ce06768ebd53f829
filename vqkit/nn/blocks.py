"""The convolutional blocks of the VQ-GAN autoencoder.

Every block maps (B, C, H, W) to (B, C', H', W'), keeps the input's dtype and memory format, and is differentiable in
its input and parameters.

Source: Esser et al., Taming Transformers for High-Resolution Image Synthesis, arXiv 2012.09841, table 7.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in as many groups as divide `channels`, up to 32, of four channels or more.

    From 128 channels on these are the published 32 groups. Narrower maps get fewer groups: with one channel a group the
    last normalisation of a decoder would take every picture's mean colour and contrast away.
    """
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, added to the input.

        y = S x + conv2(swish(norm2(conv1(swish(norm1(x))))))

    S is the identity, or a 1x1 convolution where the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a map, added to the input.

    y = x + O softmax(Q K^T / sqrt(C)) V  with Q, K, V, O 1x1 convolutions of GroupNorm(x)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # (B, 3C, H, W) -> three of (B, 1 head, H W, C)
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        query, key, value = qkv.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value)
        y = y.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return x + self.out(y)


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2, padded at the right and the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by repeating each position, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MiddleBlock(nn.Sequential):
    """Residual block, attention when asked for, residual block: the bottleneck of both encoder and decoder."""

    def __init__(self, channels: int, attention: bool):
        layers: list[nn.Module] = [ResidualBlock(channels, channels)]
        if attention:
            layers.append(AttentionBlock(channels))
        layers.append(ResidualBlock(channels, channels))
        super().__init__(*layers)


def stage(in_channels: int, out_channels: int, blocks: int, attention: bool) -> list[nn.Module]:
    """The residual blocks of one resolution, each followed by attention when asked for."""
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(ResidualBlock(in_channels if index == 0 else out_channels, out_channels))
        if attention:
            layers.append(AttentionBlock(out_channels))
    return layers
