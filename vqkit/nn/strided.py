"""The encoder and decoder of VQ-VAE: strided convolutions and a short residual stack, f = 4.

Source: van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937, section 4.1.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class _ResidualStack(nn.Module):
    """Blocks of ReLU, 3x3, ReLU, 1x1, each added to its input; a ReLU at the end."""

    def __init__(self, channels: int, hidden: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
                nn.ReLU(),
                nn.Conv2d(hidden, channels, 1, bias=False),
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return F.relu(x)


class StridedEncoder(nn.Module):
    """Pictures (B, in_channels, H, W) to a map (B, channels, H/4, W/4).

    Two 4x4 convolutions of stride 2, a 3x3 convolution and `num_res_blocks` residual blocks of width `hidden`.
    """

    def __init__(self, channels: int = 128, hidden: int = 32, num_res_blocks: int = 2, *, in_channels: int = 3):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.residual = _ResidualStack(channels, hidden, num_res_blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.residual(self.down(images))


class StridedDecoder(nn.Module):
    """A map (B, latent_dim, h, w) to pictures (B, out_channels, 4 h, 4 w): the encoder mirrored, unbounded output.

    `last_layer` is the weight of the last transposed convolution.
    """

    def __init__(
        self, latent_dim: int, channels: int = 128, hidden: int = 32, num_res_blocks: int = 2, *, out_channels: int = 3
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_dim, channels, 3, padding=1)
        self.residual = _ResidualStack(channels, hidden, num_res_blocks)
        self.up = nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1)
        self.conv_out = nn.ConvTranspose2d(channels // 2, out_channels, 4, stride=2, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.residual(self.conv_in(latents))
        return self.conv_out(F.relu(self.up(x)))
