"""The network of the priors that see a whole sequence at once and fill in what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit.models.segments import ABSENT, TokenLayout
from vqkit.models.token_prior import TokenEmbedding, initialize, token_heads
from vqkit.nn.transformer import TransformerBlock


class BidirectionalTransformer(nn.Module):
    """Logits of every code of the predicted segments, from all that is not hidden.

    x = embed(tokens), a hidden token as -1;  x <- x + h where any code of the position is hidden (+ the time's vector)
    logits = W_s norm(blocks(x))

    times: number of steps of a diffusion, each with a learned vector; 0 for none.
    """

    def __init__(self, layout: TokenLayout, depth: int, width: int, heads: int, dropout: float, times: int = 0):
        super().__init__()
        self.layout = layout
        self.embedding = TokenEmbedding(layout, width)
        self.hidden = nn.ParameterDict({segment.name: nn.Parameter(torch.empty(width).normal_(0.0, 0.02)) for segment in layout.predicted})
        self.times = nn.Embedding(times + 1, width) if times else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.heads = token_heads(layout, width)
        self.apply(initialize)

    def forward(self, columns: dict[str, Tensor], hidden: dict[str, Tensor], times: Tensor | None = None) -> dict[str, list[Tensor]]:
        """columns (B, length, S) of every segment; hidden: bool (B, length, S) of the predicted ones; times: int64 (B,).

        Returns S logits (B, length, K) for each predicted segment.
        """
        seen = columns | {name: columns[name].masked_fill(covered, ABSENT) for name, covered in hidden.items()}
        x = self.embedding(seen)
        for name, covered in hidden.items():
            span = self.layout.spans[name]
            marked = x[:, span] + covered.any(-1, keepdim=True) * self.hidden[name]
            x = torch.cat((x[:, : span.start], marked, x[:, span.stop :]), 1)
        if self.times is not None:
            x = x + self.times(times).unsqueeze(1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {segment.name: [head(x[:, self.layout.spans[segment.name]]) for head in self.heads[segment.name]]
                for segment in self.layout.predicted}
