"""Graph aggregation, the sparse half of a graph convolution: every node's weighted sum of its neighbours."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from vqkit.backend import requested
from vqkit.ops.operator import Operator, check_rows, check_size


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(eq=False)
class Graph:
    """A weighted graph in compressed rows: row i lists the nodes whose features flow into node i.

    offsets: (V + 1,) int64, row i is offsets[i]..offsets[i+1], ascending from 0 to E.
    neighbours: (E,) int64 in 0..V-1.  weights: (E,) floating point.  All three on one device; they are made contiguous.
    symmetric: the matrix equals its transpose, so that the backward pass needs no second copy.

    Raises ValueError or TypeError when the arrays do not describe such rows. What they hold is looked at where that costs no
    synchronisation: on the CPU, so also before ``to(device)``. On a GPU Triton reads nothing outside the arrays, whatever they hold.
    """

    offsets: Tensor
    neighbours: Tensor
    weights: Tensor
    symmetric: bool = False
    _transposed: "Graph | None" = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in ("offsets", "neighbours", "weights"):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
            if tensor.device != self.offsets.device:
                raise ValueError(f"{name}: expected device {self.offsets.device} as in offsets, got {tensor.device}")
            if name != "weights" and (tensor.dtype != torch.int64 or tensor.ndim != 1):
                raise TypeError(f"{name}: expected a one-dimensional int64 tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}")
            setattr(self, name, tensor.contiguous())
        if self.offsets.shape[0] < 2:
            raise ValueError("offsets: expected V + 1 >= 2 entries, a graph has at least one node")
        if self.weights.shape != self.neighbours.shape or not self.weights.is_floating_point():
            raise ValueError(
                f"weights: expected {self.neighbours.shape[0]} floating-point values, one a neighbour, "
                f"got {self.weights.dtype} of shape {tuple(self.weights.shape)}"
            )
        if self.offsets.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_rows()

    def _check_rows(self):
        first, last, edges = int(self.offsets[0]), int(self.offsets[-1]), self.neighbours.shape[0]
        if first != 0 or last != edges or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"offsets: expected values that ascend from 0 to the number of neighbours, {edges}, got {first}..{last}")
        low, high = (int(bound) for bound in self.neighbours.aminmax()) if edges else (0, 0)
        if not 0 <= low <= high < self.num_nodes:
            raise ValueError(f"neighbours: expected nodes 0..{self.num_nodes - 1}, got {low}..{high}")

    @property
    def num_nodes(self) -> int:
        return self.offsets.shape[0] - 1

    @classmethod
    def from_edges(cls, edges, num_nodes: int, weights=None) -> Self:
        """The normalised adjacency D^-1/2 (A + I) D^-1/2 of an undirected graph.

        Args:
            edges: (E, 2) node numbers, tensor or array of integers, one edge a row; empty for none. Direction does not matter;
                repeated edges add their weights; an edge from a node to itself is an error (the self-loop of weight 1 is
                added here).
            num_nodes: V >= 1.
            weights: (E,) finite positive weights, 1 each by default.

        Returns:
            A symmetric graph with float32 weights, on the device of ``edges``.

        Raises:
            ValueError, TypeError: edges, num_nodes or weights that are something else.

        Source: Kipf and Welling 2017 (arXiv 1609.02907), section 2.
        """
        check_size("num_nodes", num_nodes)
        edges = torch.as_tensor(edges)
        if edges.numel() == 0:
            edges = edges.new_zeros((0, 2), dtype=torch.int64)
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise ValueError(f"edges: expected shape (E, 2), one edge a row, got {tuple(edges.shape)}")
        if edges.dtype not in _INTEGERS:
            raise TypeError(f"edges: expected integers, got {edges.dtype}")
        edges, wide = edges.long(), {"dtype": torch.float64, "device": edges.device}
        weights = torch.ones(edges.shape[0], **wide) if weights is None else torch.as_tensor(weights, **wide)
        if edges.shape[0] and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
            raise ValueError(f"edges: expected nodes 0..{num_nodes - 1}, got {int(edges.min())}..{int(edges.max())}")
        if weights.shape != (edges.shape[0],):
            raise ValueError(f"weights: expected {edges.shape[0]} values, one an edge, got shape {tuple(weights.shape)}")
        if not bool(((weights > 0) & weights.isfinite()).all()):
            raise ValueError(f"weights: expected finite positive values, got {weights.min()}..{weights.max()}")
        if bool((edges[:, 0] == edges[:, 1]).any()):
            node = int(edges[edges[:, 0] == edges[:, 1]][0, 0])
            raise ValueError(f"edges: expected none from a node to itself, got ({node}, {node})")
        loops = torch.arange(num_nodes, device=edges.device)
        rows = torch.cat([edges[:, 0], edges[:, 1], loops])
        columns = torch.cat([edges[:, 1], edges[:, 0], loops])
        values = torch.cat([weights, weights, torch.ones(num_nodes, **wide)])
        cells, occurrence = (rows * num_nodes + columns).unique(return_inverse=True)
        values = torch.zeros(cells.shape[0], **wide).index_add_(0, occurrence, values)
        rows, columns = cells // num_nodes, cells % num_nodes
        scale = torch.zeros(num_nodes, **wide).index_add_(0, rows, values).rsqrt()
        offsets = edges.new_zeros(num_nodes + 1)
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
            # What follows waits for a GPU anyway.
            if not torch.compiler.is_compiling():
                self._check_rows()
            rows = torch.repeat_interleave(torch.arange(self.num_nodes, device=self.offsets.device), self.offsets.diff())
            order = self.neighbours.argsort(stable=True)
            offsets = torch.zeros_like(self.offsets)
            offsets[1:] = torch.bincount(self.neighbours, minlength=self.num_nodes).cumsum(0)
            self._transposed = Graph(offsets, rows[order].contiguous(), self.weights[order].contiguous())
        return self._transposed


def _reference(offsets: Tensor, neighbours: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    accumulate = torch.promote_types(features.dtype, torch.float32)
    messages = weights[:, None].to(accumulate) * features[neighbours].to(accumulate)
    # The check of the lengths would wait for a GPU.
    unsafe = features.is_cuda
    return torch.segment_reduce(messages, "sum", lengths=offsets.diff(), unsafe=unsafe, initial=0.0).to(features.dtype)


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
        backend: as in ``nearest_codes``. The backward pass uses what was asked for in the forward pass.

    Returns:
        (V, F), dtype of ``features``, accumulated in float32 or better and in a fixed order; gradient to ``features``
        (by the transposed graph). The graph's weights are constants.

    Raises:
        ValueError, TypeError: types, shapes, dtypes or devices that do not fit.

    Source: Kipf and Welling 2017 (arXiv 1609.02907), equation 2.
    """
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: expected a Graph, got {type(graph).__name__}")
    check_rows("features", features)
    if features.ndim != 2 or features.shape[0] != graph.num_nodes:
        raise ValueError(f"features: expected shape ({graph.num_nodes}, F), a row for each node, got {tuple(features.shape)}")
    if graph.offsets.device != features.device:
        raise ValueError(f"graph: expected device {features.device} as in features, got {graph.offsets.device}")
    back = graph.transposed
    arrays = (graph.offsets, graph.neighbours, graph.weights, back.offsets, back.neighbours, back.weights)
    return _aggregate(*arrays, features, requested(backend) or "")
