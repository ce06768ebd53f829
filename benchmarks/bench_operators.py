"""The four operators against naive PyTorch."""

import pytest
import torch

from benchmarks import contenders, naive
from vqkit import ops

SEARCH_SHAPES = [(4096, 1024, 256), (4096, 16384, 256), (16384, 8192, 32), (2048, 65536, 8)]
SEARCHES = {
    "vqkit": lambda x, c: lambda: ops.nearest_code(x, c),
    "cdist + argmin": lambda x, c: lambda: naive.cdist_argmin(x, c),
    "matmul + argmin": lambda x, c: lambda: naive.matmul_argmin(x, c),
    "faiss IndexFlatL2": contenders.faiss_search,
}


@pytest.mark.parametrize("contender", SEARCHES)
@pytest.mark.parametrize("n, size, dim", SEARCH_SHAPES)
def test_nearest_code(measure, device, n, size, dim, contender):
    latents, codes = torch.randn(n, dim, device=device), torch.randn(size, dim, device=device)
    measure(lambda name: SEARCHES[name](latents, codes), f"nearest code, N {n}, K {size}, D {dim}", contender)


@pytest.mark.parametrize("contender", contenders.STRAIGHT_THROUGH)
@pytest.mark.parametrize("n, size, dim", [(16384, 8192, 32), (65536, 1024, 64)])
def test_straight_through(measure, device, n, size, dim, contender):
    latents = torch.randn(n, dim, device=device, requires_grad=True)
    codes = torch.randn(size, dim, device=device, requires_grad=True)
    indices = torch.randint(size, (n,), device=device)
    upstream = torch.randn(n, dim, device=device)

    def step_of(name):
        return contenders.straight_through_step(name, latents, codes, indices, upstream)

    measure(step_of, f"straight-through forward + backward, N {n}, K {size}, D {dim}", contender)


@pytest.mark.parametrize("contender", contenders.STATISTICS)
@pytest.mark.parametrize("n, size, dim", [(16384, 8192, 32), (65536, 1024, 64)])
def test_code_statistics(measure, device, n, size, dim, contender):
    latents, indices = torch.randn(n, dim, device=device), torch.randint(size, (n,), device=device)

    def call_of(name):
        return lambda: contenders.STATISTICS[name](latents, indices, size)

    measure(call_of, f"code statistics, N {n}, K {size}, D {dim}", contender)


@pytest.mark.parametrize("contender", ["vqkit", "torch.sparse.mm", "gather + index_add"])
@pytest.mark.parametrize("nodes, edges, width", [(6207, 40000, 256), (2048, 13000, 64)])
def test_aggregate(measure, device, nodes, edges, width, contender):
    graph = contenders.random_graph(nodes, edges, device)
    features = torch.randn(nodes, width, device=device, requires_grad=True)
    upstream = torch.randn(nodes, width, device=device)

    def step_of(name):
        function = contenders.aggregation(name, graph)
        return lambda: torch.autograd.grad(function(features), features, upstream)

    measure(step_of, f"graph aggregation forward + backward, {nodes} nodes, {edges} edges, width {width}", contender)
