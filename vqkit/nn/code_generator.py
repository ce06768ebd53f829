"""A network that reads a codebook and writes another of any number of codes (RAQ).

Source: Seo & Kang, Rate-Adaptive Quantization, arXiv 2405.14222, section 3.
"""

import torch
from torch import Tensor, nn


class CodeGenerator(nn.Module):
    """Sequence to sequence: a recurrent encoder over K codes, a recurrent decoder that emits as many as are asked for.

        e'_i = W h_i + b,  h_i = LSTM(y_i, h_{i-1});  y_i = e_{(i+1)/2} for odd i <= 2K, else e'_{i-1};  h_0: the encoder's last state

    The source codes come in at every second step (cross-forcing), so that a long sequence does not lose its way.

    Args:
        dim: length of a code; the width of all states as well.
        layers: of the encoder, and of the decoder (2 in the decoder too is our reading).
        dropout: between the layers, in training.

    Call: codes (K, dim), count -> (count, dim), in the dtype of the weights. Gradients reach codes and weights. The codes of the
    first i steps do not depend on the count. It takes count steps one after the other, and `torch.compile` does not take it whole.
    Raises ValueError for codes or a count that do not fit.

    The linear layer that makes codes of states, whose values lie in (-1, 1), is our reading.
    """

    def __init__(self, dim: int, layers: int = 2, dropout: float = 0.5):
        super().__init__()
        self.dim = dim
        # With one layer there is nothing that dropout could be between.
        dropout = dropout if layers > 1 else 0.0
        self.encoder = nn.LSTM(dim, dim, layers, dropout=dropout)
        self.decoder = nn.LSTM(dim, dim, layers, dropout=dropout)
        self.to_code = nn.Linear(dim, dim)

    def forward(self, codes: Tensor, count: int) -> Tensor:
        if codes.ndim != 2 or codes.shape[1] != self.dim or not len(codes):
            raise ValueError(f"codes: expected (K, {self.dim}) with K >= 1, got {tuple(codes.shape)}")
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        codes = codes.to(self.to_code.weight.dtype)
        _, state = self.encoder(codes)
        generated: list[Tensor] = []
        for step in range(count):
            source, even = divmod(step, 2)
            taken = generated[-1] if even or source >= len(codes) else codes[source : source + 1]
            hidden, state = self.decoder(taken, state)
            generated.append(self.to_code(hidden))
        return torch.cat(generated)
