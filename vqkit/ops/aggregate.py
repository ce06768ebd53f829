"""Graph aggregation, the sparse half of a graph convolution: every node's weighted sum of its neighbours."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from vqkit.ops.operator import Operator, check_rows


@dataclass
class Graph:
    """A weighted graph in compressed rows: row i lists the nodes whose features flow into node i.

    offsets: (V + 1,) int64, row i is offsets[i]..offsets[i+1];  neighbours: (E,) int64;  weights: (E,) floating point.
    symmetric: the matrix equals its transpose, so that the backward pass needs no second copy.

    Raises ValueError or TypeError when the arrays do not describe such rows.
    """

    offsets: Tensor
    neighbours: Tensor
    weights: Tensor
    symmetric: bool = False
    _transposed: "Graph | None" = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in ("offsets", "neighbours"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tensor.ndim != 1:
                raise TypeError(f"{name}: expected a one-dimensional int64 tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}")
        if len(self.offsets) < 2:
            raise ValueError("offsets: expected V + 1 >= 2 entries, a graph has at least one node")
        if self.weights.shape != self.neighbours.shape or not self.weights.is_floating_point():
            raise ValueError(
                f"weights: expected {len(self.neighbours)} floating-point values, one a neighbour, "
                f"got {self.weights.dtype} of shape {tuple(self.weights.shape)}"
            )

    @property
    def num_nodes(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_edges(cls, edges, num_nodes: int, weights=None) -> Self:
        """The normalised adjacency D^-1/2 (A + I) D^-1/2 of an undirected graph.

        Args:
            edges: (E, 2) node numbers, tensor or array. Direction does not matter; repeated edges add their weights;
                an edge from a node to itself is an error (the self-loop of weight 1 is added here).
            num_nodes: V >= 1.
            weights: (E,) positive weights, 1 each by default.

        Source: Kipf and Welling 2017 (arXiv 1609.02907), section 2.
        """
        edges = torch.as_tensor(edges, dtype=torch.int64).reshape(-1, 2)
        weights = torch.ones(len(edges), dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if num_nodes < 1:
            raise ValueError(f"num_nodes: expected at least 1, got {num_nodes}")
        if len(edges) and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
            raise ValueError(f"edges: expected nodes 0..{num_nodes - 1}, got {int(edges.min())}..{int(edges.max())}")
        if weights.shape != (len(edges),) or not bool((weights > 0).all()):
            raise ValueError(f"weights: expected {len(edges)} positive values, got shape {tuple(weights.shape)}")
        if bool((edges[:, 0] == edges[:, 1]).any()):
            node = int(edges[edges[:, 0] == edges[:, 1]][0, 0])
            raise ValueError(f"edges: expected none from a node to itself, got ({node}, {node})")
        loops = torch.arange(num_nodes)
        rows = torch.cat([edges[:, 0], edges[:, 1], loops])
        columns = torch.cat([edges[:, 1], edges[:, 0], loops])
        values = torch.cat([weights, weights, torch.ones(num_nodes, dtype=torch.float64)])
        cells, occurrence = (rows * num_nodes + columns).unique(return_inverse=True)
        values = torch.zeros(len(cells), dtype=torch.float64).index_add_(0, occurrence, values)
        rows, columns = cells // num_nodes, cells % num_nodes
        scale = torch.zeros(num_nodes, dtype=torch.float64).index_add_(0, rows, values).rsqrt()
        offsets = torch.zeros(num_nodes + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(rows, minlength=num_nodes).cumsum(0)
        return cls(offsets, columns, (scale[rows] * values * scale[columns]).float(), symmetric=True)

    def to(self, device) -> Self:
        """The same graph on another device."""
        return type(self)(self.offsets.to(device), self.neighbours.to(device), self.weights.to(device), self.symmetric)

    @property
    def transposed(self) -> "Graph":
        """The transposed matrix, itself when symmetric, else made once."""
        if self.symmetric:
            return self
        if self._transposed is None:
            rows = torch.repeat_interleave(torch.arange(self.num_nodes, device=self.offsets.device), self.offsets.diff())
            order = self.neighbours.argsort(stable=True)
            offsets = torch.zeros_like(self.offsets)
            offsets[1:] = torch.bincount(self.neighbours, minlength=self.num_nodes).cumsum(0)
            self._transposed = Graph(offsets, rows[order].contiguous(), self.weights[order].contiguous())
        return self._transposed


def _reference(offsets: Tensor, neighbours: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    accumulate = torch.promote_types(features.dtype, torch.float32)
    messages = weights[:, None].to(accumulate) * features[neighbours].to(accumulate)
    return torch.segment_reduce(messages, "sum", lengths=offsets.diff(), unsafe=True, initial=0.0).to(features.dtype)


OPERATOR = Operator("aggregate", aggregate=_reference)


@torch.library.custom_op("vqkit::aggregate", mutates_args=())
def _aggregate(
    offsets: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    offsets_t: Tensor,
    neighbours_t: Tensor,
    weights_t: Tensor,
    features: Tensor,
    backend: str,
) -> Tensor:
    return OPERATOR.compute("aggregate", offsets, neighbours, weights, features.contiguous(), backend=backend)


@_aggregate.register_fake
def _(offsets, neighbours, weights, offsets_t, neighbours_t, weights_t, features, backend):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    *graph, _, ctx.backend = inputs
    ctx.save_for_backward(*graph)


def _backward(ctx, gradient):
    offsets, neighbours, weights, offsets_t, neighbours_t, weights_t = ctx.saved_tensors
    back = _aggregate(offsets_t, neighbours_t, weights_t, offsets, neighbours, weights, gradient, ctx.backend)
    return *(None,) * 6, back, None


_aggregate.register_autograd(_backward, setup_context=_save)


def aggregate(graph: Graph, features: Tensor, *, backend: str | None = None) -> Tensor:
    """Every node's weighted sum over its row of the graph: y = A x, with A = D^-1/2 (A + I) D^-1/2 from ``Graph.from_edges``.

    Args:
        graph: V nodes, on the device of ``features``.
        features: (V, F), floating point.
        backend: as in ``nearest_codes``.

    Returns:
        (V, F), dtype of ``features``, accumulated in float32 or better and in a fixed order; gradient to ``features``
        (by the transposed graph). The graph's weights are constants.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Source: Kipf and Welling 2017 (arXiv 1609.02907), equation 2.
    """
    check_rows("features", features)
    if features.ndim != 2 or len(features) != graph.num_nodes:
        raise ValueError(f"features: expected shape ({graph.num_nodes}, F), a row for each node, got {tuple(features.shape)}")
    if graph.offsets.device != features.device:
        raise ValueError(f"graph: expected device {features.device} as in features, got {graph.offsets.device}")
    back = graph.transposed
    arrays = (graph.offsets, graph.neighbours, graph.weights, back.offsets, back.neighbours, back.weights)
    return _aggregate(*arrays, features, backend or "")
