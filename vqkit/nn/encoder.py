"""The convolutional encoder of VQ-GAN."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.nn.blocks import Downsample, MiddleBlock, group_norm, stage


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) to a map (B, latent_dim, H/f, W/f), f = 2 ** (len(channel_multipliers) - 1).

    One stage a multiplier, finest first, each of `num_res_blocks` residual blocks of `channels * multiplier` channels,
    with a halving between stages; then a middle block, GroupNorm, swish and a 3x3 convolution.

    Args:
        channels: width at multiplier 1.
        attention_levels: the stages (0 = full resolution, negative from the coarsest) whose blocks are followed by
            attention. A level names no resolution, so one configuration serves pictures of any size.
        middle_attention: attention between the two blocks of the middle.

    The output has the input's dtype and is differentiable in input and parameters.
    Source: arXiv 2012.09841, table 7.
    """

    def __init__(
        self,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        latent_dim: int,
        *,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        in_channels: int = 3,
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in channel_multipliers]
        attended = resolve_levels(attention_levels, len(widths))
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        layers: list[nn.Module] = []
        previous = channels
        for level, width in enumerate(widths):
            layers += stage(previous, width, num_res_blocks, level in attended)
            if level < len(widths) - 1:
                layers.append(Downsample(width))
            previous = width
        self.down = nn.Sequential(*layers)
        self.middle = MiddleBlock(previous, middle_attention)
        self.norm_out = group_norm(previous)
        self.conv_out = nn.Conv2d(previous, latent_dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.down(self.conv_in(images)))
        return self.conv_out(F.silu(self.norm_out(x)))


def resolve_levels(levels: Sequence[int], count: int) -> frozenset[int]:
    """Levels with negative ones counted from the coarsest; ValueError where one is outside -count .. count - 1."""
    for level in levels:
        if not -count <= level < count:
            raise ValueError(f"attention_levels: got {level}, expected {-count} .. {count - 1} for {count} multipliers")
    return frozenset(level % count for level in levels)
