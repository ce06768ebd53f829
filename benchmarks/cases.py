"""The operators' cases: what is computed, on which inputs, by whom, and the least that it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import contenders, floors, naive
from benchmarks.contenders import Call
from vqkit import ops

SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Rows whose code is compared with a float64 search.
_CHECKED = 256


@dataclass(frozen=True)
class Contender:
    """``prepare(*inputs)`` returns the call to time; ``scratch`` is what it needs beside the inputs at least, in bytes."""

    name: str
    prepare: Callable[..., Call]
    scratch: int = 0


@dataclass(frozen=True)
class Case:
    """One thing to compute.

    make: device -> one set of inputs; sets take turns until they exceed the cache, unless ``rotate`` is False.
    works: inputs -> the work for the floor; none where there is no model of one.
    wrong: (inputs, result of a call) -> fraction of the answers that are not the right ones.
    part_of: the name of the case of which this is a share.
    """

    name: str
    make: Callable[[torch.device], tuple]
    contenders: tuple[Contender, ...]
    works: Callable[..., tuple[floors.Work, ...]] = lambda *inputs: ()
    wrong: Callable[[tuple, object], float] | None = None
    part_of: str | None = None
    rotate: bool = True


@dataclass(frozen=True)
class Shape:
    """N latents, K codes, D dimensions."""

    n: int
    size: int
    dim: int

    def __str__(self):
        return f"N {self.n}, K {self.size}, D {self.dim}"


def _pair(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(rows, shape.dim, device=device).to(dtype) for rows in (shape.n, shape.size))


def wrong_codes(inputs: tuple, indices: object) -> float:
    """Fraction of the first rows whose first code is farther than the nearest by more than float64 rounding."""
    rows, codes = inputs[0][:_CHECKED].double(), inputs[1].double()
    scores = 0.5 * codes.square().sum(-1) - rows @ codes.T
    chosen = indices[:_CHECKED].reshape(len(rows), -1)[:, :1].long()
    scale = scores.abs().amax(-1, keepdim=True)
    return float((scores.gather(1, chosen) > scores.amin(-1, keepdim=True) + 1e-12 * scale).double().mean())


def _ours(k: int = 1, **options) -> Callable[..., Call]:
    return lambda latents, codes: lambda: ops.nearest_codes(latents, codes, k, **options)[1]


def _calling(function: Callable) -> Callable[..., Call]:
    return lambda *inputs: partial(function, *inputs)


def search(shape: Shape, dtype: torch.dtype) -> Case:
    """The nearest code, against matrices of all scores."""
    element = dtype.itemsize
    scores = shape.n * shape.size * element
    rows = [Contender("vqkit", _ours()), Contender("addmm + argmin", _calling(naive.matmul_argmin), scores)]
    if dtype == torch.float32:
        # There is no cdist of half precision on a GPU.
        rows += [
            Contender("vqkit (fast)", _ours(precision="fast")),
            Contender("cdist + argmin", _calling(naive.cdist_argmin), scores),
        ]
    rows += [Contender("vqkit (CUDA C++)", contenders.cuda_search), Contender("flash-kmeans assignment", contenders.flash_kmeans_search)]
    if dtype != torch.float16:
        # As bf16, and every compilation takes seconds.
        rows.append(Contender("torch.compile(addmm + argmin)", contenders.compiled_search, scores))
    work = floors.search(shape.n, shape.size, shape.dim, element)
    name = f"nearest code, {SHORT[dtype]}, {shape}"
    return Case(name, partial(_pair, shape, dtype), tuple(rows), lambda *inputs: (work,), wrong_codes)


def search_two(shape: Shape) -> Case:
    """The two nearest codes, as VQCT's adjectives need them."""
    scores = shape.n * shape.size * 4
    rows = (
        Contender("vqkit", _ours(2)),
        Contender("cdist + topk", _calling(partial(naive.cdist_topk, k=2)), scores),
        Contender("addmm + topk", _calling(partial(naive.matmul_topk, k=2)), scores),
        Contender("vqkit (CUDA C++)", partial(contenders.cuda_search, k=2)),
    )
    work = floors.search(shape.n, shape.size, shape.dim, 4, k=2)
    return Case(f"two nearest codes, fp32, {shape}", partial(_pair, shape, torch.float32), rows, lambda *inputs: (work,), wrong_codes)


def straight_through(shape: Shape, dtype: torch.dtype) -> Case:
    def make(device):
        latents, codes = (tensor.requires_grad_() for tensor in _pair(shape, dtype, device))
        return latents, codes, torch.randint(shape.size, (shape.n,), device=device), torch.randn_like(latents)

    rows = tuple(
        Contender(name, partial(contenders.straight_through_step, name), 0 if name == "vqkit" else 3 * shape.n * shape.dim * dtype.itemsize)
        for name in contenders.STRAIGHT_THROUGH
    )
    work = floors.straight_through(shape.n, shape.size, shape.dim, dtype.itemsize)
    return Case(f"straight-through forward + backward, {SHORT[dtype]}, {shape}", make, rows, lambda *inputs: (work,))


def code_statistics(shape: Shape, dtype: torch.dtype) -> Case:
    def make(device):
        return torch.randn(shape.n, shape.dim, device=device).to(dtype), torch.randint(shape.size, (shape.n,), device=device)

    # One-hot rows are made as int64 and then in the dtype of the latents.
    scratch = {"one-hot matmul": shape.n * shape.size * (8 + dtype.itemsize)}
    rows = [
        Contender(name, _calling(partial(function, codebook_size=shape.size)), scratch.get(name, 0))
        for name, function in contenders.STATISTICS.items()
    ]
    rows += [
        Contender("index_add, deterministic", _calling(partial(contenders.deterministic_index_add, size=shape.size))),
        Contender("flash-kmeans update", partial(contenders.flash_kmeans_update, size=shape.size)),
    ]
    work = floors.statistics(shape.n, shape.size, shape.dim, dtype.itemsize)
    return Case(f"code statistics, {SHORT[dtype]}, {shape}", make, tuple(rows), lambda *inputs: (work,))


def aggregate(nodes: int, edges: int, width: int) -> Case:
    def make(device):
        graph = contenders.random_graph(nodes, edges, device)
        return graph, torch.randn(nodes, width, device=device, requires_grad=True), torch.randn(nodes, width, device=device)

    def prepare(name, graph, features, upstream):
        function = contenders.aggregation(name, graph)
        return lambda: torch.autograd.grad(function(features), features, upstream)

    scratch = {"dense matmul": nodes * nodes * 4}
    rows = tuple(Contender(name, partial(prepare, name), scratch.get(name, 0)) for name in contenders.AGGREGATIONS)
    def works(graph, *_):
        return (floors.aggregation(nodes, graph.neighbours.shape[0], width),)

    return Case(f"graph aggregation forward + backward, {nodes} nodes, {edges} edges, width {width}", make, rows, works)
