"""The convolutional decoder of VQ-GAN."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.nn.blocks import MiddleBlock, Upsample, group_norm, stage
from vqkit.nn.encoder import resolve_levels


class Decoder(nn.Module):
    """A map (B, latent_dim, h, w) to pictures (B, out_channels, h f, w f), f = 2 ** (len(channel_multipliers) - 1).

    The encoder's stages in the reverse order, with `num_res_blocks + 1` residual blocks each and a doubling between
    stages. The arguments are those of `Encoder`; levels count from full resolution there and here.

    `last_layer` is the weight of the last convolution. The output is unbounded, of the input's dtype, and
    differentiable in input and parameters.
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
        out_channels: int = 3,
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in channel_multipliers]
        attended = resolve_levels(attention_levels, len(widths))
        self.conv_in = nn.Conv2d(latent_dim, widths[-1], 3, padding=1)
        self.middle = MiddleBlock(widths[-1], middle_attention)
        layers: list[nn.Module] = []
        previous = widths[-1]
        for level in reversed(range(len(widths))):
            layers += stage(previous, widths[level], num_res_blocks + 1, level in attended)
            previous = widths[level]
            if level > 0:
                layers.append(Upsample(previous))
        self.up = nn.Sequential(*layers)
        self.norm_out = group_norm(previous)
        self.conv_out = nn.Conv2d(previous, out_channels, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.up(self.middle(self.conv_in(latents)))
        return self.conv_out(F.silu(self.norm_out(x)))
