"""The vision transformer as an autoencoder: non-overlapping patches in, non-overlapping patches out.

Source: Yu et al., Vector-quantized Image Modeling with Improved VQGAN, arXiv 2110.04627, section 3.1 and table 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.nn.transformer import TransformerBlock


class PositionEmbedding(nn.Module):
    """A learned vector for each place of a grid x grid map, (1, T, width) for a map of any size.

    Maps of another size get the grid resized bicubically (our extension; the published models see one size only).
    """

    def __init__(self, grid: int, width: int):
        super().__init__()
        self.grid = grid
        self.vectors = nn.Parameter(torch.empty(1, width, grid, grid).normal_(0.0, 0.02))

    def forward(self, height: int, width: int) -> Tensor:
        vectors = self.vectors
        if (height, width) != (self.grid, self.grid):
            vectors = F.interpolate(vectors, (height, width), mode="bicubic", align_corners=False)
        return vectors.flatten(2).transpose(1, 2)


class ViTEncoder(nn.Module):
    """Pictures (B, 3, H, W) to a map (B, width, H / patch, W / patch).

    Every patch is projected linearly, gets its place's vector and passes `depth` transformer blocks.

    grid: side of the map that the position vectors are made for.  hidden: width of the blocks' networks.
    """

    def __init__(self, patch: int, grid: int, width: int, depth: int, heads: int, hidden: int, *, dropout: float = 0.0):
        super().__init__()
        self.to_patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = PositionEmbedding(grid, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        _initialize_linear(self)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.to_patches(images)
        height, width = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2) + self.positions(height, width)
        return self.norm(self.blocks(x)).transpose(1, 2).unflatten(2, (height, width))


class ViTDecoder(nn.Module):
    """A map (B, width, h, w) to pictures (B, out_channels, h * patch, w * patch), unbounded.

    The encoder mirrored; each token gives the pixels of its patch through a two-layer network with a tanh between, as published.
    `last_layer` is the weight of the last of its layers.
    """

    def __init__(self, patch: int, grid: int, width: int, depth: int, heads: int, hidden: int, *, out_channels: int = 3,
                 dropout: float = 0.0):
        super().__init__()
        self.patch = patch
        self.positions = PositionEmbedding(grid, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out_channels * patch * patch))
        _initialize_linear(self)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.to_pixels[-1].weight

    def forward(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        x = latents.flatten(2).transpose(1, 2) + self.positions(height, width)
        pixels = self.to_pixels(self.norm(self.blocks(x)))
        return F.pixel_shuffle(pixels.transpose(1, 2).unflatten(2, (height, width)), self.patch)


def _initialize_linear(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
