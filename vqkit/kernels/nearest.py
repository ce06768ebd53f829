"""Nearest-code search: tensor-core scores, a certificate for every row, and float64 for the rows without one.

The cost of a code is |c|^2 / 2 - x . c, never |x - c|^2, which would lose the low bits of |x|^2; under cosine it is
-x . c / |c|. Four steps:

1. ``operands.prepare`` writes the codes as the tensor cores take them, whole tiles of them, and measures what the error bound
   needs. float32 becomes two bfloat16 parts, of which three products are taken.
2. ``_search_kernel`` goes through the codes in tiles, never writing a score. For one code a row it keeps, of each position in
   a tile, the least cost of a small group of columns and the tile that had it: an addition and a minimum for each pair of row
   and code, and little else. The costs in the best group are computed again, for which of them is least and second. For
   several codes a row it ranks every tile. A row whose k + 1 least costs all differ by twice the error bound is certified; the
   number of any other is appended to a list.
   Where there are too few rows to fill the device, each block of them is searched by several programs, each in its part of
   the codes, and ``_merge_kernel`` keeps the k + 1 smallest of all parts.
3. ``exhaustive.search`` searches the rows of that list again in float64, by sums of (x - c)^2.
4. ``_measure_kernel`` computes the distances of the chosen codes in float64 and settles the rows that are not finite.

The bound on a cost, for operands x', c', residuals r and low parts l: |x'| |r_c| + |r_x| |c| for the rounding of the operands,
|l_x| |l_c| for the product that is not taken, (2 D + 32) 2^-23 |x'| |c'| for accumulators that round toward zero and align to
the largest of as few as four products, and roundings of |c|^2 / 2. On Gaussian data with K 8192 it leaves 0.3 % of the rows
uncertified at D 8 to 64 and 1 % at D 256, in bfloat16 as in float32.

Bytes: N D, three times, and K D operands, and 12 N results; the codes are read again, from L2, by every block of rows. Where D is
too large for a block of rows to stay in shared memory they are split once too, and read again for every tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import exhaustive, operands, probe, tile
from vqkit.kernels.exhaustive import load_float64
from vqkit.kernels.operands import centred, place, split
from vqkit.kernels.parts import load_lists, store_lists
from vqkit.kernels.ranking import best_groups, best_several, empty_groups, empty_list, take_best

# Elements of the rows that are looked at together outside the search's loop; many would take the loop's registers.
_CHUNK = 16
_MOST = 2**31


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors, latents and codes, cannot be searched; None when they can."""
    for name, tensor in zip(("latents", "codes"), tensors):
        # Columns, and the count of uncertified rows, have 32 bits.
        if tensor.ndim and tensor.shape[0] >= _MOST:
            return f"{name}: expected fewer than 2^31 rows, got {tensor.shape[0]}"
    return probe.unavailable(*tensors)


@triton.jit
def _cost_bound(
    latents_ptr, centre_ptr, state_ptr, rows, live, D: tl.constexpr, COSINE: tl.constexpr, PARTS: tl.constexpr,
    ROUNDED: tl.constexpr, RELATIVE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The largest error of any cost of each row (rows,); not finite where the arithmetic may have overflowed."""
    squares = tl.zeros(rows.shape, dtype=tl.float32)
    lows, residuals, peak = squares, squares, squares
    for start in range(0, D, CHUNK):
        value = centred(latents_ptr, centre_ptr, rows, live, start, D, CHUNK)
        high, low, residual = split(value, ROUNDED, PARTS)
        residual = residual.to(tl.float32)
        squares += tl.sum(high * high, axis=1)
        lows += tl.sum(low * low, axis=1)
        residuals += tl.sum(residual * residual, axis=1)
        peak = tl.maximum(peak, tl.max(tl.where(value == 0, 0.0, 1.0), axis=1))
    # The added terms cover what underflows, in the squares as in the products.
    row_norm, row_low, row_residual = tl.sqrt(squares + D * 2.4e-38), tl.sqrt(lows + D * 2.4e-38), tl.sqrt(residuals + D * 2.4e-38)
    code_norm = tl.load(state_ptr).to(tl.float32, bitcast=True) + D * 1e-18
    code_residual = tl.load(state_ptr + 1).to(tl.float32, bitcast=True)
    half_square = tl.load(state_ptr + 3).to(tl.float32, bitcast=True)
    bound = row_norm * code_norm * RELATIVE + half_square * 4.8e-7 + D * 1e-36
    bound += row_norm * code_residual + row_residual * code_norm
    if PARTS == 2:
        # What no product holds: low part times low part.
        bound += row_low * (tl.load(state_ptr + 2).to(tl.float32, bitcast=True) + D * 1e-18)
    if COSINE:
        # A zero row is as near to all codes that are finite: the costs are exact.
        bound = tl.where((peak == 0) & (bound < float("inf")), 0.0, bound)
    return bound


@triton.jit
def _settle(
    kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr,
    KEEP: tl.constexpr, PENDING: tl.constexpr,
):  # fmt: skip
    """Store the KEEP - 1 cheapest columns of each row's list; append the rows whose order is not certain to that of the pending."""
    previous, column, kept_costs = take_best(kept_costs, kept_columns)
    tl.store(indices_ptr + rows * (KEEP - 1), column.to(tl.int64), mask=live)
    certain = live
    for rank in range(1, KEEP):
        cost, column, kept_costs = take_best(kept_costs, kept_columns)
        # Infinity less infinity, where finite codes are too few, is no margin.
        certain = certain & (cost - previous >= bound)
        tl.store(indices_ptr + rows * (KEEP - 1) + rank, column.to(tl.int64), mask=live & (rank < KEEP - 1))
        previous = cost
    pending = live & (certain == 0)
    slot = tl.atomic_add(state_ptr + PENDING + tl.zeros_like(column), 1, mask=pending)
    tl.store(pending_ptr + slot, rows, mask=pending)


@triton.jit
def _multiplied(high, low, code_ptrs, products, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Add x . c' over a chunk of D to the products, the small terms first."""
    code = tl.load(code_ptrs)
    if PARTS == 2:
        products = tl.dot(low, code, products, input_precision="ieee")
        products = tl.dot(high, tl.load(code_ptrs + WIDTH), products, input_precision="ieee")
    return tl.dot(high, code, products, input_precision="ieee")


@triton.jit
def _best_of_group(
    latents_ptr, centre_ptr, table_ptr, shifts_ptr, scales_ptr, rows, live, group, D: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, COSINE: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The least cost among each row's group of codes, its column, and the second least: three (ROWS,)."""
    columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    lines = place(columns, CODES, GROUP, SLOTS)
    products = tl.zeros(columns.shape, dtype=tl.float32)
    for start in range(0, D, CHUNK):
        value = centred(latents_ptr, centre_ptr, rows, live, start, D, CHUNK).to(tl.float32)
        address = table_ptr + lines.to(tl.int64)[:, :, None] * (PARTS * WIDTH) + (start + tl.arange(0, CHUNK))[None, None, :]
        code = tl.load(address).to(tl.float32)
        if PARTS == 2:
            code += tl.load(address + WIDTH).to(tl.float32)
        products += tl.sum(value[:, None, :] * code, axis=2)
    if COSINE:
        products *= tl.load(scales_ptr + lines)
    costs = tl.load(shifts_ptr + lines) - products
    best, column, others = take_best(costs, columns)
    return best, column, tl.min(others, axis=1)


@triton.jit(do_not_specialize=["n", "tiles", "span"])
def _search_kernel(
    latents_ptr, centre_ptr, rows_ptr, table_ptr, shifts_ptr, scales_ptr, state_ptr, indices_ptr, pending_ptr,
    costs_ptr, columns_ptr, bounds_ptr, n, tiles, span, slack, D: tl.constexpr, COSINE: tl.constexpr,
    KEEP: tl.constexpr, LANES: tl.constexpr, WHOLE: tl.constexpr, RELATIVE: tl.constexpr, PENDING: tl.constexpr,
    PARTS: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
    GROUP: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Search ``span`` tiles of codes for a block of rows, then settle the rows or, unless these are the WHOLE, store what was found."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    live = rows < n
    WIDTH: tl.constexpr = (D + DIMS - 1) // DIMS * DIMS
    if D <= DIMS:
        high, low, _ = split(centred(latents_ptr, centre_ptr, rows, live, 0, D, DIMS), ROUNDED, PARTS)
        high = high.to(table_ptr.dtype.element_ty)
        low = low.to(table_ptr.dtype.element_ty)
    POSITIONS: tl.constexpr = CODES // GROUP
    if KEEP == 2:
        best, number, second = empty_groups(ROWS, POSITIONS)
    else:
        kept_costs, kept_columns = empty_list(ROWS, LANES, tl.float32)
    begin, end = 0, tiles
    if not WHOLE:
        begin = part * span
        end = tl.minimum(begin + span, tiles)
    columns = tl.arange(0, CODES)
    dims = tl.arange(0, DIMS)
    row_ptrs = rows_ptr + rows[:, None] * (PARTS * WIDTH) + dims[None, :]
    for index in range(begin, end):
        first = tl.cast(index, tl.int64) * CODES
        code_ptrs = table_ptr + first * (PARTS * WIDTH) + (columns[None, :] * (PARTS * WIDTH) + dims[:, None])
        products = tl.zeros((ROWS, CODES), dtype=tl.float32)
        if D <= DIMS:
            products = _multiplied(high, low, code_ptrs, products, PARTS, WIDTH)
        else:
            for start in range(0, WIDTH, DIMS):
                high = tl.load(row_ptrs + start)
                low = tl.load(row_ptrs + start + (PARTS - 1) * WIDTH) if PARTS == 2 else high
                products = _multiplied(high, low, code_ptrs + start, products, PARTS, WIDTH)
        if COSINE:
            products *= tl.load(scales_ptr + first + columns)[None, :]
        costs = tl.load(shifts_ptr + first + columns)[None, :] - products
        if KEEP == 2:
            best, number, second = best_groups(costs, index, best, number, second, GROUP, SLOTS)
        else:
            kept_costs, kept_columns = best_several(costs, index * CODES + columns, kept_costs, kept_columns, KEEP, LANES)

    if KEEP == 2:
        _, group, others = take_best(best, number * POSITIONS + tl.arange(0, POSITIONS)[None, :])
        others = tl.min(tl.minimum(others, second), axis=1)
        best, column, second = _best_of_group(
            latents_ptr, centre_ptr, table_ptr, shifts_ptr, scales_ptr, rows, live, group,
            D, WIDTH, PARTS, COSINE, CODES, GROUP, SLOTS, max(4, 64 // GROUP),
        )  # fmt: skip
        # Rounding may have put the group first: then the costs are equal, and no certificate says otherwise.
        kept_costs = tl.join(tl.minimum(best, others), tl.minimum(second, others))
        # Nobody asks which code came second.
        kept_columns = tl.join(column, tl.full((ROWS,), 2147483647, dtype=tl.int32))
    bound = slack * _cost_bound(latents_ptr, centre_ptr, state_ptr, rows, live, D, COSINE, PARTS, ROUNDED, RELATIVE, CHUNK)
    if WHOLE:
        _settle(kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr, KEEP, PENDING)
    else:
        store_lists(costs_ptr, columns_ptr, part * n + rows, live, kept_costs, kept_columns, LANES)
        tl.store(bounds_ptr + rows, bound, mask=live & (part == 0))


@triton.jit(do_not_specialize=["n", "parts"])
def _merge_kernel(
    costs_ptr, columns_ptr, bounds_ptr, state_ptr, indices_ptr, pending_ptr, n, parts,
    KEEP: tl.constexpr, LANES: tl.constexpr, PENDING: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Settle a block of rows whose codes were searched in parts."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    kept_costs, kept_columns = load_lists(costs_ptr, columns_ptr, rows, live, n, parts, PARTS, LANES)
    bound = tl.load(bounds_ptr + rows, mask=live, other=0.0)
    _settle(kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr, KEEP, PENDING)


@triton.jit(do_not_specialize=["n"])
def _measure_kernel(
    latents_ptr, codes_ptr, indices_ptr, distances_ptr, n,
    D: tl.constexpr, COSINE: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The distances of the chosen codes, infinite where these are not finite; a row that is not gets indices 0 .. K - 1 and NaN."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    for rank in range(K):
        index = tl.load(indices_ptr + rows * K + rank, mask=live, other=0)
        distance = tl.zeros((ROWS,), dtype=tl.float64)
        row_squares = tl.zeros((ROWS,), dtype=tl.float64)
        code_squares = tl.zeros((ROWS,), dtype=tl.float64)
        faults = tl.zeros((ROWS,), dtype=tl.int32)
        code_faults = tl.zeros((ROWS,), dtype=tl.int32)
        for start in range(0, D, DIMS):
            dims = start + tl.arange(0, DIMS)
            mask = live[:, None] & (dims < D)[None, :]
            row = load_float64(latents_ptr + rows[:, None] * D + dims[None, :], mask)
            code = load_float64(codes_ptr + index[:, None] * D + dims[None, :], mask)
            faults += tl.sum(tl.where(tl.abs(row) < float("inf"), 0, 1), axis=1)
            code_faults += tl.sum(tl.where(tl.abs(code) < float("inf"), 0, 1), axis=1)
            if COSINE:
                distance += tl.sum(row * code, axis=1)
                row_squares += tl.sum(row * row, axis=1)
                code_squares += tl.sum(code * code, axis=1)
            else:
                distance += tl.sum((row - code) * (row - code), axis=1)
        if COSINE:
            norms = tl.sqrt(row_squares) * tl.sqrt(code_squares)
            distance = 1.0 - distance / tl.where(norms == 0, 1.0, norms)
        distance = tl.where(code_faults == 0, distance, float("inf"))
        sound = faults == 0
        tl.store(distances_ptr + rows * K + rank, tl.where(sound, distance, float("nan")), mask=live)
        tl.store(indices_ptr + rows * K + rank, tl.where(sound, index, rank), mask=live)


def relative_bound(d: int, parts: int) -> float:
    """The largest error of tensor-core products x . c over D elements in so many parts, relative to |x| |c|.

    Products are exact. Those of the low parts come first and are small: they add little to what every sum may lose.
    """
    return (2 * d + 32) * 2.0**-23 * (1.0 if parts == 1 else 1.0 + 2.0**-5)


def _search(latents: Tensor, codes: Tensor, indices: Tensor, cosine: bool, exact: bool) -> Tensor:
    """Fill ``indices`` (N, k); return how many rows were searched again (1,), int32."""
    (n, k), (size, d) = indices.shape, codes.shape
    device, lanes = probe.device_kind(latents), triton.next_power_of_2(k + 1)
    parts_each = operands.parts(codes.dtype)
    sizes = tile.search(n, size, d, parts_each, device, k + 1)
    prepared = operands.prepare(codes, cosine, sizes)
    centre, table, shifts, scales, norms, state = prepared
    rows = operands.split_rows(latents, centre, sizes) if d > sizes.dims else table
    pending = latents.new_empty(n, dtype=torch.int64)
    blocks, tiles = triton.cdiv(n, sizes.rows), triton.cdiv(size, sizes.codes)
    # Two programs a multiprocessor.
    span = triton.cdiv(tiles, tile.parts(2 * probe.processors(latents) // blocks, tiles))
    parts = triton.cdiv(tiles, span)
    lists = (parts if parts > 1 else 0, n, lanes)
    costs, columns = shifts.new_empty(lists), pending.new_empty(lists, dtype=torch.int32)
    bounds = shifts.new_empty(n if parts > 1 else 0)
    _search_kernel[(blocks, parts)](
        latents, centre, rows, table, shifts, scales, state, indices, pending, costs, columns, bounds,
        n, tiles, span, 2.02 if exact else 0.0, D=d, COSINE=cosine, KEEP=k + 1, LANES=lanes, WHOLE=parts == 1,
        RELATIVE=relative_bound(d, parts_each), PENDING=operands.PENDING, PARTS=parts_each, ROUNDED=operands.rounded(codes.dtype),
        ROWS=sizes.rows, CODES=sizes.codes, DIMS=sizes.dims, GROUP=sizes.group, SLOTS=sizes.slots, CHUNK=_CHUNK,
        num_warps=sizes.warps, num_stages=sizes.stages, maxnreg=sizes.registers,
    )  # fmt: skip
    if parts > 1:
        sizes = tile.merge(lanes, device)
        _merge_kernel[(triton.cdiv(n, sizes.rows),)](
            costs, columns, bounds, state, indices, pending, n, parts,
            KEEP=k + 1, LANES=lanes, PENDING=operands.PENDING, ROWS=sizes.rows, PARTS=tile.MOST_PARTS, num_warps=sizes.warps,
        )  # fmt: skip
    count = state[operands.PENDING :]
    # Even the fast search sends what overflowed here.
    exhaustive.search(latents, codes, norms, count, pending, indices, cosine)
    return count


def nearest_codes(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool) -> tuple[Tensor, Tensor]:
    """Distances (N, k), float32 or float64, and indices (N, k) int64 of the k nearest codes, nearest first.

    exact: the order is that of the costs in float64, ties to the lowest index; otherwise rows that rounding could decide
    otherwise keep the order of the first search.
    """
    n, d = latents.shape
    distances = latents.new_empty((n, k), dtype=torch.promote_types(latents.dtype, torch.float32))
    indices = latents.new_empty((n, k), dtype=torch.int64)
    if n == 0:
        return distances, indices
    with probe.on_device_of(latents):
        _search(latents, codes, indices, cosine, exact)
        sizes = tile.rows(d, probe.device_kind(latents))
        _measure_kernel[(triton.cdiv(n, sizes.rows),)](
            latents, codes, indices, distances, n,
            D=d, COSINE=cosine, K=k, ROWS=sizes.rows, DIMS=sizes.dims, num_warps=sizes.warps,
        )  # fmt: skip
    return distances, indices
