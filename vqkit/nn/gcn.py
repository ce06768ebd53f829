"""Networks that transfer word vectors into codes: graph convolutions, and the perceptron that ignores the graph.

Source: Zhang et al., Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling, arXiv 2403.10071;
the layer is Kipf & Welling, arXiv 1609.02907, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit import ops


class GraphConvolution(nn.Module):
    """One graph convolution, Y = A X W + b, where A = D^-1/2 (A + I) D^-1/2 is already in the graph's weights.

    The product is associated to aggregate the narrower side: (A X) W when `in_dim < out_dim`, else A (X W).

    Call: features (V, in_dim), graph of V nodes -> (V, out_dim). Gradients reach features, weight and bias.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        # As torch's Linear. Sums over weighted neighbours already enlarge the codes; a larger start (Glorot) puts most of
        # them out of reach of the latents, and codes that are never near are never selected.
        bound = in_dim**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features: Tensor, graph: ops.Graph) -> Tensor:
        in_dim, out_dim = self.weight.shape
        if in_dim < out_dim:
            return ops.aggregate(graph, features) @ self.weight + self.bias
        return ops.aggregate(graph, features @ self.weight) + self.bias

    def extra_repr(self) -> str:
        in_dim, out_dim = self.weight.shape
        return f"{in_dim}, {out_dim}"


class GraphTransfer(nn.Module):
    """Two graph convolutions with ReLU and dropout between them: codes = GC2(dropout(ReLU(GC1(X)))).

    Word vectors (V, in_dim) and a graph over the V words to codes (V, out_dim). A code depends on all words within two
    edges, and all codes share the weights: a gradient at one selected code moves its whole neighbourhood.

    Args:
        dropout: 0.5 as published. It is active in training mode only, and makes the training codebook noisy.

    With the published widths, 512 -> 256 -> 256, it has 197,120 parameters.
    Raises ValueError unless features is (V, in_dim) with the graph's V.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, dropout: float = 0.5):
        super().__init__()
        self.out_dim = out_dim
        self.first = GraphConvolution(in_dim, hidden_dim)
        self.second = GraphConvolution(hidden_dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, graph: ops.Graph) -> Tensor:
        expected = (graph.num_nodes, self.first.weight.shape[0])
        if tuple(features.shape) != expected:
            raise ValueError(f"features: got shape {tuple(features.shape)}, expected {expected}: (nodes, in_dim)")
        hidden = self.dropout(torch.relu(self.first(features, graph)))
        return self.second(hidden, graph)


class MLPTransfer(nn.Module):
    """Two linear layers with LeakyReLU 0.1 between them: the ablation of `GraphTransfer` that sees no graph.

    The call is the same, `graph` is ignored. Word vectors (V, in_dim) to codes (V, out_dim), each on its own.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.out_dim = out_dim
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.LeakyReLU(0.1), nn.Linear(hidden_dim, out_dim))

    def forward(self, features: Tensor, graph: ops.Graph | None = None) -> Tensor:
        return self.layers(features)


class LinearTransfer(nn.Module):
    """One linear map of every word vector, (V, in_dim) -> (V, out_dim). The call is that of `GraphTransfer`, `graph` is ignored."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.out_dim = out_dim
        self.layer = nn.Linear(in_dim, out_dim)

    def forward(self, features: Tensor, graph: ops.Graph | None = None) -> Tensor:
        return self.layer(features)


class NoTransfer(nn.Module):
    """Word vectors as they are: the ablation without a transfer. The call is that of `GraphTransfer`; there is nothing to learn."""

    def __init__(self, in_dim: int):
        super().__init__()
        self.out_dim = in_dim

    def forward(self, features: Tensor, graph: ops.Graph | None = None) -> Tensor:
        return features
