"""Nearest-code search: the index of the nearest code of every latent, exact, without an N x K matrix."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqkit.ops.operator import Operator, check_codes, check_rows, check_size

MAX_K = 8
Metric = Literal["l2", "cosine"]
Precision = Literal["exact", "fast"]

# Float64 values of the reference at a time: bounds its memory, whatever N and K.
_BLOCK = 1 << 20
# Codes that it keeps of each row beyond k, so that a near tie does not take another look at all of them.
_SPARE = 2


def _reference(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool) -> tuple[Tensor, Tensor]:
    rows, sound, finite = latents.double(), latents.isfinite().all(-1), codes.isfinite().all(-1)
    # Codes that are not finite come last, at distance infinity.
    order, size = finite.byte().argsort(descending=True, stable=True), int(finite.sum())
    table, places = codes.double()[order[:size]], torch.arange(k, device=codes.device)
    searched = sound
    if cosine:
        # A zero row has similarity 0 with every code.
        rows, table, searched = scaled(rows), scaled(table), sound & (rows != 0).any(-1)
    chosen = places.repeat(len(rows), 1)
    distances = rows.new_ones(chosen.shape).masked_fill_(places >= size, torch.inf)
    if size and searched.any():
        closeness, chosen[searched, :size] = _search(rows[searched], table, min(k, size), cosine)
        length = rows[searched].norm(dim=-1, keepdim=True)
        distances[searched, :size] = 1 - closeness / length if cosine else -closeness
    distances = distances.where(sound[:, None], torch.nan).to(torch.promote_types(latents.dtype, torch.float32))
    return distances, order[chosen].where(sound[:, None], places)


def scaled(vectors: Tensor) -> Tensor:
    """Each vector times a power of two, which is exact, so that no square leaves the range of float64."""
    exponent = vectors.abs().amax(-1, keepdim=True).frexp().exponent
    return vectors * torch.exp2(-exponent.clamp(-1000, 1000).double())


def closeness_of(rows: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """-|x - c|^2, or x . c / |c|, by sums over D: rows (N, D), codes (N or 1, C, D) -> (N, C)."""
    if not cosine:
        return -(rows[:, None] - codes).square().sum(-1)
    length = codes.norm(dim=-1)
    return (rows[:, None] * codes).sum(-1) / length.where(length > 0, 1.0)


def _search(rows: Tensor, table: Tensor, k: int, cosine: bool) -> tuple[Tensor, Tensor]:
    """Closeness and places of the k nearest, (N, k) each.

    A product of matrices gives an upper bound of every x . c - |c|^2 / 2; where the largest do not prove an order, sums over D
    decide among them or, where they may lack one of the nearest, among all codes.
    """
    (size, dim), keep = table.shape, min(k + _SPARE, table.shape[0])
    # An offset common to all codes decides nothing and costs bits; a median, since a code may be far away.
    centre = table.new_zeros(dim) if cosine else table[:: -(-size // 64)].median(0).values
    moved = normalize(table, eps=1e-300) if cosine else table - centre
    norms = moved.norm(dim=-1)
    # The error of a score is at most slope * (|x| |c| + |c|^2 / 2) + tiny: twice what rounding and underflow can do.
    limits = torch.finfo(torch.float64)
    slope, tiny = (dim + 8) * limits.eps, (dim + 8) * limits.tiny
    start = norms.square() * (0.5 * slope - (0.0 if cosine else 0.5))
    operand = torch.cat([moved, slope * norms[:, None]], 1).T
    everything = torch.arange(size, device=table.device)[None]
    step = max(1, _BLOCK // max(size, keep * dim))
    # Filled in place: results kept between the blocks' large arrays would keep the allocator from using their memory again.
    found = rows.new_empty((rows.shape[0], k)), everything.new_empty((rows.shape[0], k))
    for block, *into in zip(rows.split(step), *(part.split(step) for part in found)):
        moved = normalize(block, eps=1e-300) if cosine else block - centre
        norm = moved.norm(dim=-1, keepdim=True)
        upper, kept = torch.addmm(start, torch.cat([moved, norm], 1), operand).topk(keep)
        lower = upper - slope * norms[kept] * (2 * norm + norms[kept]) - 2 * tiny
        proved = (lower[:, :-1] > upper[:, 1:])[:, :k].all(-1)
        complete = lower[:, :k].amin(-1) > upper[:, -1] if keep < size else torch.ones_like(proved)
        places = kept[:, :k].contiguous()
        closeness = closeness_of(block, table[places], cosine)
        part = (~proved & complete).nonzero()[:, 0]
        closeness[part], places[part] = _compare(block[part], table, kept[part].sort(dim=-1).values, k, cosine)
        for part in (~proved & ~complete).nonzero()[:, 0].split(max(1, _BLOCK // table.numel())):
            closeness[part], places[part] = _compare(block[part], table, everything, k, cosine)
        for target, part in zip(into, (closeness, places)):
            target.copy_(part)
    return found


def _compare(rows: Tensor, table: Tensor, places: Tensor, k: int, cosine: bool) -> tuple[Tensor, Tensor]:
    """The k nearest among the codes at ascending ``places`` (N or 1, C); the sort is stable: ties go to the lowest."""
    ranked = closeness_of(rows, table[places], cosine).sort(dim=-1, descending=True, stable=True)
    return ranked.values[:, :k], places.expand(rows.shape[0], -1).gather(1, ranked.indices[:, :k])


OPERATOR = Operator("nearest", nearest_codes=_reference, cuda=True)


@torch.library.custom_op("vqkit::nearest_codes", mutates_args=())
def _nearest_codes(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool, backend: str) -> tuple[Tensor, Tensor]:
    arguments = (latents.contiguous(), codes.contiguous(), k, cosine, exact)
    return OPERATOR.compute("nearest_codes", *arguments, backend=backend, heads=codes.ndim == 3)


@_nearest_codes.register_fake
def _(latents, codes, k, cosine, exact, backend):
    shape = (*latents.shape[:-1], k)
    return latents.new_empty(shape, dtype=torch.promote_types(latents.dtype, torch.float32)), latents.new_empty(shape, dtype=torch.int64)


def nearest_codes(
    latents: Tensor, codes: Tensor, k: int, *, metric: Metric = "l2", precision: Precision = "exact", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest codes of every latent, nearest first.

    indices[n] = the k codes with the largest x_n . c - |c|^2 / 2, which are those with the smallest |x_n - c|^2.

    Args:
        latents: (..., D), float32, float16, bfloat16 or float64.
        codes: (K, D), same dtype and device; or (H, K, D), a table for each head: then latents are (H, ..., D), and each head's
            are searched in its own table.
        k: 1 <= k <= min(K, 8).
        metric: "l2", or "cosine" for the largest x . c / (|x| |c|).
        precision: "exact": the order of the scores in float64 of the inputs as given, ties to the lowest index, on every
            backend. "fast": the order may differ where scores differ by less than float32 rounding. Both are deterministic.
            Scores that differ by no more than the rounding of a float64 sum over D count as equal. Which of these codes comes
            first may differ between backends, though not between runs; among codes with the same bits it is the lowest index.
        backend: "triton", "cuda", "native" or "reference"; None chooses.

    Returns:
        distances: (..., k), squared Euclidean distance, or 1 - cosine similarity; float32 (float64 for float64 inputs).
        indices: (..., k), int64.
        Neither has a gradient: both inputs are detached.

    A row that holds NaN or infinity gets indices 0..k-1 and distance NaN. A code that does is never chosen as long as k finite
    codes exist; where fewer do, the others follow them in ascending order at distance infinity. Under "cosine" a zero latent
    or zero code has similarity 0. The memory used is O(N + K), never O(N K).

    Raises:
        ValueError, TypeError: types, shapes, dtypes, devices, k, metric or precision that do not fit.
        BackendError: the requested backend cannot compute this.

    Source: our own; the score and its certificate are described in csrc/nearest.cpp.
    """
    check_codes(codes, heads=True)
    check_rows("latents", latents, like=("codes", codes))
    heads = codes.shape[:-2]
    if heads and (latents.ndim < 2 or latents.shape[0] != codes.shape[0]):
        raise ValueError(f"latents: expected shape ({codes.shape[0]}, ..., D), a head for each in codes, got {tuple(latents.shape)}")
    check_size("k", k)
    if k > min(codes.shape[-2], MAX_K):
        raise ValueError(f"k: expected 1 <= k <= min(K, {MAX_K}) = {min(codes.shape[-2], MAX_K)}, got {k}")
    if metric not in ("l2", "cosine"):
        raise ValueError(f"metric: expected 'l2' or 'cosine', got {metric!r}")
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision: expected 'exact' or 'fast', got {precision!r}")
    rows = latents.detach().reshape(*heads, -1, latents.shape[-1])
    distances, indices = _nearest_codes(rows, codes.detach(), k, metric == "cosine", precision == "exact", backend or "")
    shape = (*latents.shape[:-1], k)
    return distances.view(shape), indices.view(shape)


def nearest_code(
    latents: Tensor, codes: Tensor, *, metric: Metric = "l2", precision: Precision = "exact", backend: str | None = None
) -> Tensor:
    """The nearest code of every latent: ``latents`` (..., D), ``codes`` (K, D) or, a head each, (H, K, D) -> indices (...), int64.

    The contract, arguments and errors are those of ``nearest_codes`` with k = 1.
    """
    _, indices = nearest_codes(latents, codes, 1, metric=metric, precision=precision, backend=backend)
    return indices.squeeze(-1)
