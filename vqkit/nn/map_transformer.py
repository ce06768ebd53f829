"""A small transformer that reads a map as a sequence with one summary in front."""

import torch
from torch import Tensor, nn

from vqkit.nn.transformer import TransformerBlock
from vqkit.nn.vit import PositionEmbedding


class MapTransformer(nn.Module):
    """A map (B, D, h, w) to (B, 1 + h w, out_width): the summary (CLS) first, then the positions row by row.

    y = project(norm(blocks([CLS, W x_1 + p_1, ..., W x_hw + p_hw])))

    CLS and the position vectors p are learned; a map of another size than `grid` x `grid` gets them resized.

    grid: side of the map that the position vectors are made for.  width, depth, heads: of the pre-norm blocks.
    """

    def __init__(self, dim: int, grid: int, width: int, depth: int, heads: int, out_width: int):
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.summary = nn.Parameter(torch.empty(1, 1, width).normal_(0.0, 0.02))
        self.positions = PositionEmbedding(grid, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        x = self.embed(maps.flatten(2).transpose(1, 2)) + self.positions(height, width)
        x = torch.cat((self.summary.expand(len(x), -1, -1).to(x.dtype), x), 1)
        return self.project(self.norm(self.blocks(x)))
