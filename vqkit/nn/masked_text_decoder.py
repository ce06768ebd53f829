"""Words that are missing from a text, from its other words and from a second sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedTextDecoder(nn.Module):
    """Logits of the tokens of a vocabulary at the masked positions of a text.

    x_t = m_t where t is masked, else the text's own state;  y = layers(x, memory)
    logits = norm(gelu(W y)) E^T + b

    The m_t, one for each position, and b are learned; E are the frozen token embeddings. The layers are post-norm: self-attention,
    then cross-attention to the memory, then a two-layer network.

    Args:
        token_embeddings: E, (V, W); kept as a buffer that no state dict holds.
        context: most tokens of a text.
        depth, heads, hidden, dropout: of the layers.

    Call: states (B, T, W) with T <= context; masked (B, T) bool; visible (B, T) bool, False where nobody may look (padding), every
    row with at least one True; memory (B, S, W) -> logits (M, V) of the M masked positions, row by row.
    Source: Liang et al., LG-VQ, arXiv 2405.14206, masked text prediction; the sizes are those of its published code.
    """

    def __init__(self, token_embeddings: Tensor, context: int, *, depth: int = 2, heads: int = 1, hidden: int = 512, dropout: float = 0.1):
        super().__init__()
        tokens, width = token_embeddings.shape
        self.register_buffer("token_embeddings", token_embeddings.detach().clone(), persistent=False)
        self.mask_vectors = nn.Parameter(torch.empty(context, width).normal_(0.0, 0.02))
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(width, heads, hidden, dropout, batch_first=True) for _ in range(depth))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, states: Tensor, masked: Tensor, visible: Tensor, memory: Tensor) -> Tensor:
        x = torch.where(masked.unsqueeze(-1), self.mask_vectors[: states.shape[1]].to(states.dtype), states)
        for layer in self.layers:
            x = layer(x, memory, tgt_key_padding_mask=~visible)
        return F.linear(self.head(x[masked]), self.token_embeddings, self.bias)
