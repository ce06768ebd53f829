"""The transformer block that encoders, decoders and priors stack."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values of the positions that an attention layer has seen, so that the next position is one row of work.

    length: most positions; `seen` of them are held. Memory is taken when the first keys come.
    """

    def __init__(self, length: int):
        self.length, self.seen = length, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Note keys and values (B, heads, t, d) of the next t positions; returns those of all positions so far."""
        if self._keys is None:
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        end = self.seen + keys.shape[2]
        self._keys[:, :, self.seen : end], self._values[:, :, self.seen : end] = keys, values
        self.seen = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def repeated(self, batch: int) -> "KeyValueCache":
        """The same positions of one sequence as the beginning of a batch of sequences."""
        copied = KeyValueCache(self.length)
        if self._keys is not None:
            copied.append(*(held[:, :, : self.seen].expand(batch, -1, -1, -1) for held in (self._keys, self._values)))
        return copied


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence (B, T, width) to itself.

    y = O softmax(Q K^T / sqrt(width / heads)) V

    causal: a position sees itself and what comes before it.  dropout: of the attention weights, in training.
    mask: (B, T) bool, False hides a position from all others.
    cache: of a causal layer in inference; the sequence goes on from the positions that it holds.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        batch, length, width = x.shape
        # (B, T, 3 width) -> three of (B, heads, T, width / heads)
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        before = 0 if cache is None else cache.seen
        if cache is not None:
            key, value = cache.append(key, value)
        visible = None if mask is None else mask[:, None, None, :]
        if self.causal and (visible is not None or (before and length > 1)):
            past = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
            visible = past if visible is None else visible & past
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and visible is None and not before
        y = F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal=causal)
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

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))
