"""Who is timed: vqkit, plain PyTorch and other libraries, each as a function of the inputs that returns the call to time."""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module, util
from types import ModuleType
from unittest import SkipTest

import torch
from torch import Tensor, nn

import vqkit
from benchmarks import naive
from vqkit import ops

Call = Callable[[], object]


class Unavailable(SkipTest):
    """A contender cannot run here; the message says why. pytest takes it for a skip."""


def library(module: str, package: str) -> ModuleType:
    """Another library. Raises Unavailable where it is not installed."""
    if util.find_spec(module) is None:
        raise Unavailable(f"{package} is not installed")
    return import_module(module)


def faiss_search(latents: Tensor, codes: Tensor) -> Call:
    faiss = library("faiss", "faiss-cpu")
    if latents.is_cuda:
        raise Unavailable("faiss-cpu searches on the CPU")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.numpy())
    queries = latents.numpy()
    return lambda: index.search(queries, 1)


@cache
def _compiled_matmul_argmin() -> Callable:
    """One for all inputs: each has a cache of compiled code of its own."""
    return torch.compile(naive.matmul_argmin, fullgraph=True, dynamic=False)


def compiled_search(latents: Tensor, codes: Tensor) -> Call:
    if not latents.is_cuda:
        raise Unavailable("compiled on CUDA only")
    # Every shape has a kernel of its own: without this they would reach the limit of recompilations.
    torch.compiler.reset()
    return partial(_compiled_matmul_argmin(), latents, codes)


def cuda_search(latents: Tensor, codes: Tensor, k: int = 1) -> Call:
    """Our other search on a GPU, in CUDA C++."""
    if reason := vqkit.native.cuda_rejects(latents, codes):
        raise Unavailable(reason)
    return lambda: ops.nearest_codes(latents, codes, k, backend="cuda")[1]


def flash_kmeans_search(latents: Tensor, codes: Tensor) -> Call:
    """Its assignment kernel, with the squared norms, which its iterations keep, made before."""
    if not latents.is_cuda:
        raise Unavailable("flash-kmeans assigns on CUDA only")
    assign = library("flash_kmeans", "flash-kmeans") and import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    points, centroids = latents[None], codes[None]
    point_squares, centroid_squares = (t.float().square().sum(-1) for t in (points, centroids))
    return lambda: assign(points, centroids, point_squares, c_sq=centroid_squares)[0]


def flash_kmeans_update(latents: Tensor, indices: Tensor, size: int) -> Call:
    """Its update of the centroids, sorting included."""
    if not latents.is_cuda:
        raise Unavailable("flash-kmeans updates on CUDA only")
    update = library("flash_kmeans", "flash-kmeans").triton_centroid_update_sorted_euclid
    points, ids, before = latents[None], indices[None].int(), latents.new_zeros(1, size, latents.shape[1])
    return lambda: update(points, ids, before)


def deterministic_index_add(latents: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`naive.index_add_statistics` under torch.use_deterministic_algorithms; the counts have no such version."""
    torch.use_deterministic_algorithms(True)
    try:
        sums = naive.index_add_sums(latents, indices, size)
    finally:
        torch.use_deterministic_algorithms(False)
    return sums, ops.code_counts(indices, size)


STATISTICS = {
    "vqkit": ops.code_statistics,
    "one-hot matmul": naive.one_hot_statistics,
    "index_add + bincount": naive.index_add_statistics,
}
STRAIGHT_THROUGH = {"vqkit": ops.straight_through, "gather + autograd": naive.straight_through}
QUANTIZERS: dict[str, Callable[[int, int], nn.Module]] = {
    "vqkit": lambda dim, size: vqkit.Quantizer(dim, size, channel_first=True),
    "cdist + one-hot": lambda dim, size: naive.NaiveQuantizer(dim, size, codebook="ema"),
    "vector-quantize-pytorch": lambda dim, size: library("vector_quantize_pytorch", "vector-quantize-pytorch").VectorQuantize(
        dim, size, accept_image_fmap=True, rotation_trick=False
    ),
}


def straight_through_step(contender: str, latents: Tensor, codes: Tensor, indices: Tensor, upstream: Tensor) -> Call:
    """Forward and backward to latents and codes, from gradients of the output and of both losses."""
    gradients = (upstream, torch.full((), 0.25, device=latents.device), torch.ones((), device=latents.device))

    def step():
        outputs = STRAIGHT_THROUGH[contender](latents, codes, indices)
        return torch.autograd.grad(outputs, (latents, codes), [g.to(output.dtype) for g, output in zip(gradients, outputs)])

    return step


def quantizer_step(contender: str, size: int, x: Tensor) -> Call:
    """Forward in training mode, EMA update included, and backward to x (B, D, h, w) from gradients of the output and of the loss."""
    quantizer = QUANTIZERS[contender](x.shape[1], size).to(x.device)
    gradients = (torch.randn_like(x), torch.ones((), device=x.device))

    def step():
        result = quantizer(x)
        return torch.autograd.grad((result[0], result[-1].sum()), x, gradients)

    return step


def random_graph(nodes: int, edges: int, device: torch.device | str) -> ops.Graph:
    """Edges are drawn as words occur: a few nodes have most of them."""
    ends = (torch.rand(edges, 2) ** 3 * nodes).long()
    return ops.Graph.from_edges(ends[ends[:, 0] != ends[:, 1]], nodes).to(device)


def aggregation(contender: str, graph: ops.Graph) -> Callable[[Tensor], Tensor]:
    """features (V, F) -> A features, by one of AGGREGATIONS."""
    return AGGREGATIONS[contender](graph)


def _sparse(graph: ops.Graph) -> Tensor:
    shape = (graph.num_nodes, graph.num_nodes)
    return torch.sparse_csr_tensor(graph.offsets, graph.neighbours, graph.weights, shape, check_invariants=False)


def _sparse_mm(graph: ops.Graph):
    matrix = _sparse(graph)
    return lambda features: torch.sparse.mm(matrix, features)


def _gather_index_add(graph: ops.Graph):
    rows = torch.repeat_interleave(torch.arange(graph.num_nodes, device=graph.offsets.device), graph.offsets.diff())
    return lambda features: naive.gather_index_add(rows, graph.neighbours, graph.weights, features)


def _dense(graph: ops.Graph):
    matrix = _sparse(graph).to_dense()
    return lambda features: matrix @ features


AGGREGATIONS = {
    "vqkit": lambda graph: lambda features: ops.aggregate(graph, features),
    "torch.sparse.mm": _sparse_mm,
    "gather + index_add": _gather_index_add,
    "dense matmul": _dense,
}
