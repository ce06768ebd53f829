"""The next token of a text, from the tokens before it and from a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.nn.vit import PositionEmbedding


class CaptionDecoder(nn.Module):
    """Logits of the next token at each place of a text, given a map (B, D, h, w).

    x_t = norm(P E[id_t] + p_t);  m_i = norm(Q z_i + q_i);  y = layers(x, m);  logits_t = norm(gelu(W y_t)) E^T + b

    E are frozen token embeddings; all else is learned. The layers are pre-norm: self-attention to the places up to t, cross-attention
    to all positions of the map, a two-layer network. As no place sees a later one, what pads a text behind reaches none of it.

    Args:
        dim, grid: D, and the side of the map that the position vectors q are made for; others get them resized.
        token_embeddings: E, (V, W); kept as a buffer that no state dict holds.
        context: most tokens of a text.
        width, depth, heads, dropout: of the layers, whose networks are 4 width wide inside.

    Call: maps (B, D, h, w), ids (B, T) int64, wanted (B, T) bool -> logits (M, V) at the M wanted places, row by row.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), decoder; the head is that of `MaskedTextDecoder`.
    """

    def __init__(self, dim: int, grid: int, token_embeddings: Tensor, context: int, *, width: int, depth: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        tokens, text_width = token_embeddings.shape
        self.register_buffer("token_embeddings", token_embeddings.detach().clone(), persistent=False)
        self.embed_token = nn.Linear(text_width, width)
        self.places = nn.Parameter(torch.empty(context, width).normal_(0.0, 0.02))
        self.norm_token = nn.LayerNorm(width)
        self.embed_code = nn.Linear(dim, width)
        self.positions = PositionEmbedding(grid, width)
        self.norm_code = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, F.gelu, batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.head = nn.Sequential(nn.Linear(width, text_width), nn.GELU(), nn.LayerNorm(text_width))
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, maps: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        length = ids.shape[1]
        memory = self.norm_code(self.embed_code(maps.flatten(2).transpose(1, 2)) + self.positions(*maps.shape[-2:]))
        x = self.norm_token(self.embed_token(self.token_embeddings[ids]) + self.places[:length])
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=later, tgt_is_causal=True)
        return F.linear(self.head(x[wanted]), self.token_embeddings, self.bias)
