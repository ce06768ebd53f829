"""The float64 search of the rows on a list whose length only the device knows.

The grid is fixed and every program reads the length: the host never waits, and the launches can be captured in a CUDA graph.
Usually the list is short, a row in a thousand, and one program would take longer for it than all others took for the search
before. So as many programs as there are share a group of rows, each with a part of the codes, and a second kernel merges what
they found. Bytes: as many times K D as there are groups, and a list of costs a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import probe, tile
from vqkit.kernels.parts import load_lists, store_lists
from vqkit.kernels.ranking import best_several, empty_list, take_best


@triton.jit
def load_float64(pointer, mask):
    """Load as float64, by way of float32: the interpreter widens bfloat16 to nothing else."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(tl.float64)


@triton.jit
def _parts_each(groups, programs, most_parts):
    """In how many parts the codes are searched for each group of rows, so that there is work for all programs."""
    return tl.maximum(tl.minimum(programs // tl.maximum(groups, 1), most_parts), 1)


@triton.jit(do_not_specialize=["codebook_size", "programs", "most_parts"])
def _exhaust_kernel(
    latents_ptr, codes_ptr, norms_ptr, count_ptr, pending_ptr, indices_ptr, costs_ptr, columns_ptr,
    codebook_size, programs, most_parts, D: tl.constexpr, COSINE: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The K cheapest codes of each pending row, or of one part of the codes, by sums in float64."""
    count = tl.load(count_ptr)
    groups = tl.cdiv(count, ROWS)
    parts = _parts_each(groups, programs, most_parts)
    span = tl.cdiv(tl.cdiv(codebook_size, CODES), parts) * CODES
    for item in range(tl.program_id(0), groups * parts, programs):
        slots = item // parts * ROWS + tl.arange(0, ROWS)
        begin = item % parts * span
        live = slots < count
        rows = tl.load(pending_ptr + slots, mask=live, other=0)
        kept_costs, kept_columns = empty_list(ROWS, LANES, tl.float64)
        for first in range(begin, tl.minimum(begin + span, codebook_size), CODES):
            columns = first + tl.arange(0, CODES)
            present = columns < codebook_size
            total = tl.zeros((ROWS, CODES, DIMS), dtype=tl.float64)
            for start in range(0, D, DIMS):
                dims = start + tl.arange(0, DIMS)
                inside = (dims < D)[None, :]
                row = load_float64(latents_ptr + rows[:, None] * D + dims[None, :], live[:, None] & inside)[:, None, :]
                address = columns.to(tl.int64)[:, None] * D + dims[None, :]
                code = load_float64(codes_ptr + address, present[:, None] & inside)[None, :, :]
                if COSINE:
                    total -= row * code
                else:
                    total += (row - code) * (row - code)
            norms = tl.load(norms_ptr + columns, mask=present, other=1.0)[None, :]
            costs = tl.sum(total, axis=2)
            if COSINE:
                costs /= norms
            # Order: any finite code, its cost beyond float64 or not; codes that are not finite; then nothing.
            costs = tl.where(costs < 1e308, costs, 1e308)
            costs = tl.where(norms == norms, costs, 1.5e308)
            costs = tl.where(present[None, :], costs, float("inf"))
            kept_costs, kept_columns = best_several(costs, columns, kept_costs, kept_columns, K, LANES)
        if parts > 1:
            store_lists(costs_ptr, columns_ptr, item * ROWS + tl.arange(0, ROWS), live, kept_costs, kept_columns, LANES)
        else:
            for rank in range(K):
                _, column, kept_costs = take_best(kept_costs, kept_columns)
                tl.store(indices_ptr + rows * K + rank, column.to(tl.int64), mask=live)


@triton.jit(do_not_specialize=["programs", "most_parts"])
def _collect_kernel(
    count_ptr, pending_ptr, indices_ptr, costs_ptr, columns_ptr, programs, most_parts,
    K: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The K cheapest of what the parts of each group kept; nothing where one program searched all codes."""
    count = tl.load(count_ptr)
    parts = _parts_each(tl.cdiv(count, ROWS), programs, most_parts)
    if parts > 1:
        for group in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
            lines = tl.arange(0, ROWS)
            live = group * ROWS + lines < count
            rows = tl.load(pending_ptr + group * ROWS + lines, mask=live, other=0)
            places = group * parts * ROWS + lines
            kept_costs, kept_columns = load_lists(costs_ptr, columns_ptr, places, live, ROWS, parts, PARTS, LANES)
            for rank in range(K):
                _, column, kept_costs = take_best(kept_costs, kept_columns)
                tl.store(indices_ptr + rows * K + rank, column.to(tl.int64), mask=live)


def search(latents: Tensor, codes: Tensor, norms: Tensor, count: Tensor, pending: Tensor, indices: Tensor, cosine: bool) -> None:
    """Replace the indices (N, k) of the first ``count`` (1,) rows that ``pending`` (N,) names.

    norms: (K,) float64, 1 for a zero code and NaN for one that is not finite; only cosine uses its value.
    """
    (n, k), (size, d) = indices.shape, codes.shape
    sizes = tile.exhaustive(size, d, probe.device_kind(latents))
    most_parts = tile.parts(tile.MOST_PARTS, triton.cdiv(size, sizes.columns))
    programs = min(triton.cdiv(n, sizes.rows) * most_parts, 4 * probe.processors(latents))
    lanes = triton.next_power_of_2(k)
    lists = (programs * sizes.rows if most_parts > 1 else 0, lanes)
    costs, columns = norms.new_empty(lists), pending.new_empty(lists, dtype=torch.int32)
    _exhaust_kernel[(programs,)](
        latents, codes, norms, count, pending, indices, costs, columns, size, programs, most_parts,
        D=d, COSINE=cosine, K=k, LANES=lanes, ROWS=sizes.rows, CODES=sizes.columns, DIMS=sizes.dims, num_warps=sizes.warps,
    )  # fmt: skip
    if most_parts > 1:
        _collect_kernel[(min(triton.cdiv(n, sizes.rows), programs),)](
            count, pending, indices, costs, columns, programs, most_parts,
            K=k, LANES=lanes, ROWS=sizes.rows, PARTS=tile.MOST_PARTS, num_warps=4,
        )  # fmt: skip
