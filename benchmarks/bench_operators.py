"""The four operators against naive PyTorch."""

import pytest
import torch

from benchmarks import naive
from vqkit import ops

SEARCH_SHAPES = [(4096, 1024, 256), (4096, 16384, 256), (16384, 8192, 32), (2048, 65536, 8)]


def _faiss(latents, codes):
    faiss = pytest.importorskip("faiss")
    if latents.is_cuda:
        pytest.skip("faiss-cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.numpy())
    queries = latents.numpy()
    return lambda: index.search(queries, 1)


SEARCHES = {
    "vqkit": lambda x, c: lambda: ops.nearest_code(x, c),
    "cdist + argmin": lambda x, c: lambda: naive.cdist_argmin(x, c),
    "matmul + argmin": lambda x, c: lambda: naive.matmul_argmin(x, c),
    "faiss IndexFlatL2": _faiss,
}


@pytest.mark.parametrize("contender", SEARCHES)
@pytest.mark.parametrize("n, size, dim", SEARCH_SHAPES)
def test_nearest_code(measure, device, n, size, dim, contender):
    latents, codes = torch.randn(n, dim, device=device), torch.randn(size, dim, device=device)
    measure(SEARCHES[contender](latents, codes), f"nearest code, N {n}, K {size}, D {dim}", contender)


@pytest.mark.parametrize("contender", ["vqkit", "gather + autograd"])
@pytest.mark.parametrize("n, size, dim", [(16384, 8192, 32), (65536, 1024, 64)])
def test_straight_through(measure, device, n, size, dim, contender):
    latents = torch.randn(n, dim, device=device, requires_grad=True)
    codes = torch.randn(size, dim, device=device, requires_grad=True)
    indices = torch.randint(size, (n,), device=device)
    function = ops.straight_through if contender == "vqkit" else naive.straight_through
    upstream = torch.randn(n, dim, device=device)

    def step():
        quantized, commitment, codebook = function(latents, codes, indices)
        torch.autograd.grad((quantized * upstream).sum() + 0.25 * commitment + codebook, (latents, codes))

    measure(step, f"straight-through forward + backward, N {n}, K {size}, D {dim}", contender)


STATISTICS = {
    "vqkit": ops.code_statistics,
    "one-hot matmul": naive.one_hot_statistics,
    "index_add + bincount": naive.index_add_statistics,
}


@pytest.mark.parametrize("contender", STATISTICS)
@pytest.mark.parametrize("n, size, dim", [(16384, 8192, 32), (65536, 1024, 64)])
def test_code_statistics(measure, device, n, size, dim, contender):
    latents, indices = torch.randn(n, dim, device=device), torch.randint(size, (n,), device=device)
    measure(lambda: STATISTICS[contender](latents, indices, size), f"code statistics, N {n}, K {size}, D {dim}", contender)


@pytest.mark.parametrize("contender", ["vqkit", "torch.sparse.mm", "gather + index_add"])
@pytest.mark.parametrize("nodes, edges, width", [(6207, 40000, 256), (2048, 13000, 64)])
def test_aggregate(measure, device, nodes, edges, width, contender):
    """Edges are drawn as words occur: a few nodes have most of them."""
    ends = (torch.rand(edges, 2) ** 3 * nodes).long()
    graph = ops.Graph.from_edges(ends[ends[:, 0] != ends[:, 1]], nodes).to(device)
    features = torch.randn(nodes, width, device=device, requires_grad=True)
    upstream = torch.randn(nodes, width, device=device)
    rows = torch.repeat_interleave(torch.arange(nodes, device=device), graph.offsets.diff())
    sparse = torch.sparse_csr_tensor(graph.offsets, graph.neighbours, graph.weights, (nodes, nodes), check_invariants=False)
    functions = {
        "vqkit": lambda: ops.aggregate(graph, features),
        "torch.sparse.mm": lambda: torch.sparse.mm(sparse, features),
        "gather + index_add": lambda: naive.gather_index_add(rows, graph.neighbours, graph.weights, features),
    }
    measure(
        lambda: torch.autograd.grad(functions[contender](), features, upstream),
        f"graph aggregation forward + backward, {nodes} nodes, {edges} edges, width {width}",
        contender,
    )
