"""Graph aggregation against dense float64 matrices, forward and backward, and the normalisation of graphs."""

import pytest
import torch

from vqkit.ops import Graph, aggregate


def dense(graph):
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(graph.num_nodes), graph.offsets.diff())
    return matrix.index_put_((rows, graph.neighbours), graph.weights.double(), accumulate=True)


def random_graph(nodes, edges, hub=False):
    ends = torch.randint(nodes, (edges, 2))
    if hub:
        ends[: edges // 2, 0] = 0
    ends = ends[ends[:, 0] != ends[:, 1]]
    return Graph.from_edges(ends, nodes, weights=torch.rand(len(ends)) + 0.1)


def directed_graph(nodes, edges):
    rows, columns = torch.randint(nodes, (edges,)).sort().values, torch.randint(nodes, (edges,))
    offsets = torch.zeros(nodes + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(rows, minlength=nodes).cumsum(0)
    return Graph(offsets, columns, torch.randn(edges))


@pytest.mark.parametrize("nodes, edges, width, hub", [(1, 0, 1, False), (5, 4, 3, False), (60, 200, 33, False), (700, 1500, 8, True)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2), (torch.float64, 1e-7)])
def test_forward_and_backward(backend, device, dtype, tolerance, nodes, edges, width, hub):
    graph = random_graph(nodes, edges, hub)
    features, weights = torch.randn(nodes, width).to(dtype), torch.randn(nodes, width).to(dtype)
    x = features.to(device).requires_grad_()
    y = aggregate(graph.to(device), x, backend=backend)
    (gradient,) = torch.autograd.grad(y, x, weights.to(device))
    matrix = dense(graph)
    torch.testing.assert_close(y.detach().cpu().double(), matrix @ features.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.cpu().double(), matrix.T @ weights.double(), rtol=tolerance, atol=tolerance)


def test_directed_graph_uses_the_transposed_rows_backward(backend, device):
    graph = directed_graph(50, 160)
    x = torch.randn(50, 6, device=device, requires_grad=True)
    weights = torch.randn(50, 6)
    y = aggregate(graph.to(device), x, backend=backend)
    (gradient,) = torch.autograd.grad(y, x, weights.to(device))
    torch.testing.assert_close(y.detach().cpu().double(), dense(graph) @ x.detach().cpu().double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.cpu().double(), dense(graph).T @ weights.double(), rtol=1e-5, atol=1e-5)


def test_nodes_without_a_row_are_zero(backend, device):
    graph = Graph(torch.tensor([0, 0, 1, 1]), torch.tensor([2]), torch.tensor([2.0])).to(device)
    y = aggregate(graph, torch.ones(3, 4, device=device), backend=backend)
    assert y.cpu().tolist() == [[0] * 4, [2] * 4, [0] * 4]


def test_arrays_that_are_not_contiguous(backend, device):
    neighbours, weights = torch.tensor([0, 9, 1, 9, 2, 9, 3, 9])[::2], torch.arange(8.0)[::2]
    graph = Graph(torch.arange(10)[::2] // 2, neighbours, weights, symmetric=True).to(device)
    assert aggregate(graph, torch.ones(4, 1, device=device), backend=backend).flatten().tolist() == [0, 2, 4, 6]


def test_a_graph_equals_itself_only():
    graph, other = (Graph.from_edges([[0, 1]], 2) for _ in range(2))
    assert graph == graph and graph != other and len({graph, other}) == 2


def test_edges_of_any_integer_type_or_none():
    edges = torch.tensor([[0, 1], [1, 2]])
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(dense(Graph.from_edges(edges.to(kind), 3)), dense(Graph.from_edges(edges.tolist(), 3)))
    for none in ([], torch.zeros(0, 2), torch.zeros(2, 0)):
        assert torch.equal(dense(Graph.from_edges(none, 3)), torch.eye(3, dtype=torch.float64))


def test_registration(backend, device):
    graph = directed_graph(12, 30).to(device)
    back = graph.transposed
    arrays = (graph.offsets, graph.neighbours, graph.weights, back.offsets, back.neighbours, back.weights)
    features = torch.randn(12, 3, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.vqkit.aggregate, (*arrays, features, backend))


def test_normalisation_is_symmetric_with_self_loops():
    graph = Graph.from_edges([[0, 1], [1, 0], [1, 2]], 4, weights=[1.0, 2.0, 5.0])
    adjacency = torch.tensor([[1.0, 3, 0, 0], [3, 1, 5, 0], [0, 5, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    scale = adjacency.sum(1).rsqrt()
    torch.testing.assert_close(dense(graph), scale[:, None] * adjacency * scale, rtol=1e-6, atol=1e-7)
    assert graph.symmetric and graph.transposed is graph


def test_compiles_without_a_graph_break(backend, device):
    graph = random_graph(20, 40).to(device)
    x = torch.randn(20, 5, device=device)

    def smoothed(features):
        # Made while it is traced, as a module makes it of its buffers.
        traced = Graph(graph.offsets, graph.neighbours, graph.weights, graph.symmetric)
        return aggregate(traced, features, backend=backend).relu()

    compiled = torch.compile(smoothed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), aggregate(graph, x, backend=backend).relu())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Graph.from_edges([[0, 3]], 3), r"edges: expected nodes 0..2, got 0..3"),
        (lambda: Graph.from_edges([[1, 1]], 3), r"edges: .*itself, got \(1, 1\)"),
        (lambda: Graph.from_edges([[0, 1]], 3, weights=[0.0]), "weights: .*positive"),
        (lambda: Graph.from_edges([[0, 1]], 3, weights=[torch.inf]), "weights: .*finite.*inf"),
        (lambda: Graph.from_edges([[0, 1]], 3, weights=[torch.nan]), "weights: .*finite.*nan"),
        (lambda: Graph.from_edges([[0, 1]], 3, weights=[1.0, 2.0]), r"weights: expected 1 .*\(2,\)"),
        (lambda: Graph.from_edges([], 0), "num_nodes: .*0"),
        (lambda: Graph.from_edges([[0, 0, 1, 1], [2, 3, 2, 3]], 4), r"edges: .*\(E, 2\).*\(2, 4\)"),
        (lambda: Graph.from_edges([0, 1], 4), r"edges: .*\(E, 2\).*\(2,\)"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(2)), "weights: expected 1"),
        (lambda: Graph(torch.tensor([0, 5]), torch.tensor([0]), torch.ones(1)), "offsets: .*0 to .* 1, got 0..5"),
        (lambda: Graph(torch.tensor([1, 1]), torch.tensor([0]), torch.ones(1)), "offsets: .*got 1..1"),
        (lambda: Graph(torch.tensor([0, -3, 1]), torch.tensor([0]), torch.ones(1)), "offsets: .*ascend"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([9]), torch.ones(1)), r"neighbours: expected nodes 0..0, got 9..9"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([-1]), torch.ones(1)), "neighbours: .*-1"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1, device="meta")), "weights: .*device cpu.*meta"),
        (lambda: aggregate(Graph.from_edges([[0, 1]], 3), torch.zeros(4, 2)), r"features: .*\(3, F\).*\(4, 2\)"),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Graph([0, 1], torch.tensor([0]), torch.ones(1)), "offsets: .*list"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([0]), [1.0]), "weights: .*list"),
        (lambda: Graph(torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32), torch.ones(1)), "neighbours: .*int32"),
        (lambda: Graph.from_edges(torch.tensor([[0.5, 1.7]]), 3), "edges: .*integers.*float32"),
        (lambda: Graph.from_edges([[0, 1]], 3.0), "num_nodes: .*3.0"),
    ],
)
def test_type_errors_name_the_argument(call, words):
    with pytest.raises(TypeError, match=words):
        call()
