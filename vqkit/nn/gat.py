"""Graph attention as a transfer network: neighbours weigh in by what they are, not by how often they were seen.

Source: Velickovic et al., Graph Attention Networks, arXiv 1710.10903; in the place of VQCT's graph convolutions: Zhang et al., arXiv
2403.10071, ablations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import ops


class GraphAttention(nn.Module):
    """One layer of attention over a graph's edges, of several heads side by side.

        y_i = sum_j a_ij W x_j,  a_i = softmax over the neighbours j of i of LeakyReLU_0.2(l . W x_i + r . W x_j)

    Call: features (V, in_dim), graph of V nodes, whose weights are not used -> (V, out_dim). A node without neighbours gives zero; graphs
    with self-loops have none. Works in O(E out_dim) memory. Gradients reach features and all parameters.

    heads: a divisor of out_dim; each gives out_dim / heads of the output.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int = 1):
        super().__init__()
        if out_dim % heads:
            raise ValueError(f"heads: expected a divisor of out_dim {out_dim}, got {heads}")
        self.heads = heads
        self.weight = nn.Linear(in_dim, out_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.left = nn.Parameter(torch.empty(heads, out_dim // heads))
        self.right = nn.Parameter(torch.empty(heads, out_dim // heads))
        for vector in (self.left, self.right):
            nn.init.xavier_uniform_(vector)

    def forward(self, features: Tensor, graph: ops.Graph) -> Tensor:
        nodes = graph.num_nodes
        values = self.weight(features).view(nodes, self.heads, -1)
        receivers = torch.repeat_interleave(torch.arange(nodes, device=features.device), graph.offsets.diff())
        senders = graph.neighbours
        scores = F.leaky_relu((values * self.left).sum(-1)[receivers] + (values * self.right).sum(-1)[senders], 0.2)
        # A softmax by node, with its largest score taken off first.
        place = receivers[:, None].expand_as(scores)
        largest = scores.new_full((nodes, self.heads), -torch.inf).scatter_reduce(0, place, scores.detach(), "amax")
        shares = (scores - largest[receivers]).exp()
        total = shares.new_zeros(nodes, self.heads).scatter_add(0, place, shares)
        shares = shares / total[receivers]
        gathered = torch.zeros_like(values).index_add(0, receivers, shares[..., None] * values[senders])
        return gathered.flatten(1) + self.bias


class GraphAttentionTransfer(nn.Module):
    """Two layers of graph attention with ELU and dropout between them; the call is that of `GraphTransfer`.

    heads: of the first layer; the second has one.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, dropout: float = 0.5, heads: int = 4):
        super().__init__()
        self.out_dim = out_dim
        self.first = GraphAttention(in_dim, hidden_dim, heads)
        self.second = GraphAttention(hidden_dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, graph: ops.Graph) -> Tensor:
        return self.second(self.dropout(F.elu(self.first(features, graph))), graph)
