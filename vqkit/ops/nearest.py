"""Nearest-code search: the index of the nearest code of every latent, exact, without an N x K matrix."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqkit.ops.operator import Operator, check_codes, check_rows

MAX_K = 8
Metric = Literal["l2", "cosine"]
Precision = Literal["exact", "fast"]

# Scores of the reference at a time: bounds its memory, whatever N and K.
_BLOCK = 1 << 20


def _reference(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool) -> tuple[Tensor, Tensor]:
    rows, table = latents.double(), codes.double()
    sound, finite = rows.isfinite().all(-1, keepdim=True), table.isfinite().all(-1)
    rows, table = rows.where(sound, 0.0), table.where(finite[:, None], 0.0)
    # An offset common to all codes decides nothing and costs bits.
    centre = table.sum(0) / finite.sum().clamp(min=1)
    rows, table = (normalize(rows, eps=1e-300), normalize(table, eps=1e-300)) if cosine else (rows - centre, table - centre)
    half = table.square().sum(-1) * (0.0 if cosine else 0.5)
    found = [_block_reference(block, table, half, finite, k, cosine) for block in rows.split(max(1, _BLOCK // len(codes)))]
    distances, indices = (torch.cat(part) for part in zip(*found))
    distances = distances.where(sound, torch.nan).to(torch.promote_types(latents.dtype, torch.float32))
    return distances, indices.where(sound, torch.arange(k, device=rows.device))


def _block_reference(
    rows: Tensor, table: Tensor, half: Tensor, finite: Tensor, k: int, cosine: bool
) -> tuple[Tensor, Tensor]:
    scores = torch.addmm(-half, rows, table.T).masked_fill_(~finite, -torch.inf)
    largest = table.norm(dim=-1).amax()
    # What float64 cannot tell apart is a tie.
    rounding = 2.3e-16 * table.shape[1] * largest * (rows.norm(dim=-1, keepdim=True) + largest)
    indices = rows.new_empty((len(rows), k), dtype=torch.int64)
    for rank in range(k):
        best = (scores >= scores.amax(-1, keepdim=True) - rounding).byte().argmax(-1, keepdim=True)
        indices[:, rank : rank + 1] = best
        scores.scatter_(1, best, -torch.inf)
    chosen, rows = table[indices], rows[:, None]
    return 1 - (rows * chosen).sum(-1) if cosine else (rows - chosen).square().sum(-1), indices


OPERATOR = Operator("nearest", nearest_codes=_reference, cuda=True)


@torch.library.custom_op("vqkit::nearest_codes", mutates_args=())
def _nearest_codes(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool, backend: str) -> tuple[Tensor, Tensor]:
    return OPERATOR.compute("nearest_codes", latents.contiguous(), codes.contiguous(), k, cosine, exact, backend=backend)


@_nearest_codes.register_fake
def _(latents, codes, k, cosine, exact, backend):
    shape = (latents.shape[0], k)
    return latents.new_empty(shape, dtype=torch.promote_types(latents.dtype, torch.float32)), latents.new_empty(shape, dtype=torch.int64)


def nearest_codes(
    latents: Tensor, codes: Tensor, k: int, *, metric: Metric = "l2", precision: Precision = "exact", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest codes of every latent, nearest first.

    indices[n] = the k codes with the largest x_n . c - |c|^2 / 2, which are those with the smallest |x_n - c|^2.

    Args:
        latents: (..., D), float32, float16, bfloat16 or float64.
        codes: (K, D), same dtype and device.
        k: 1 <= k <= min(K, 8).
        metric: "l2", or "cosine" for the largest x . c / (|x| |c|).
        precision: "exact": the order of the scores in float64 of the inputs as given, ties to the lowest index, on every
            backend. "fast": the order may differ where scores differ by less than float32 rounding. Both are deterministic.
        backend: "triton", "cuda", "native" or "reference"; None chooses.

    Returns:
        distances: (..., k), squared Euclidean distance, or 1 - cosine similarity; float32 (float64 for float64 inputs).
        indices: (..., k), int64.
        Neither has a gradient: both inputs are detached.

    A row that holds NaN or infinity gets indices 0..k-1 and distance NaN. A code that does is never chosen as long as k finite
    codes exist. Under "cosine" a zero latent or zero code has similarity 0. The memory used is O(N + K), never O(N K).

    Raises:
        ValueError, TypeError: shapes, dtypes, devices, k, metric or precision that do not fit.
        BackendError: the requested backend cannot compute this.

    Source: our own; the score and its certificate are described in csrc/nearest.hpp.
    """
    check_codes(codes)
    check_rows("latents", latents, like=("codes", codes))
    if not 1 <= k <= min(len(codes), MAX_K):
        raise ValueError(f"k: expected 1 <= k <= min(K, {MAX_K}) = {min(len(codes), MAX_K)}, got {k}")
    if metric not in ("l2", "cosine"):
        raise ValueError(f"metric: expected 'l2' or 'cosine', got {metric!r}")
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision: expected 'exact' or 'fast', got {precision!r}")
    rows = latents.detach().reshape(-1, latents.shape[-1])
    distances, indices = _nearest_codes(rows, codes.detach(), k, metric == "cosine", precision == "exact", backend or "")
    shape = (*latents.shape[:-1], k)
    return distances.view(shape), indices.view(shape)


def nearest_code(
    latents: Tensor, codes: Tensor, *, metric: Metric = "l2", precision: Precision = "exact", backend: str | None = None
) -> Tensor:
    """The nearest code of every latent: ``latents`` (..., D), ``codes`` (K, D) -> indices (...), int64.

    The contract, arguments and errors are those of ``nearest_codes`` with k = 1.
    """
    _, indices = nearest_codes(latents, codes, 1, metric=metric, precision=precision, backend=backend)
    return indices.squeeze(-1)
