"""The transformer block that encoders, decoders and priors stack."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence (B, T, width) to itself.

    y = O softmax(Q K^T / sqrt(width / heads)) V

    causal: a position sees itself and what comes before it.  dropout: of the attention weights, in training.
    mask: (B, T) bool, False hides a position from all others.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        # (B, T, 3 width) -> three of (B, heads, T, width / heads)
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        visible = None if mask is None else mask[:, None, None, :]
        if visible is not None and self.causal:
            visible = visible & visible.new_ones(length, length).tril()
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal=self.causal and visible is None)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    """Pre-norm: attention, then a two-layer network, each added to its input; (B, T, width) to the same.

    x <- x + attention(norm1(x));  x <- x + W2 gelu(W1 norm2(x))

    hidden: width of the network's middle. Default: 4 width.
    dropout: of the attention weights and of what either half adds, in training.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); normalised before: Xiong et al. 2020 (arXiv 2002.04745).
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, *, causal: bool = False, dropout: float = 0.0):
        super().__init__()
        hidden = hidden or 4 * width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=causal, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.mlp(self.norm2(x)))
