"""Nearest-code search: tensor-core scores, a certificate for every row, and float64 for the rows without one.

The cost of a code is |c|^2 / 2 - x . c, never |x - c|^2, which would lose the low bits of |x|^2; under cosine it is
-x . c / |c|. Four steps:

1. ``_prepare_kernel`` writes the codes as the tensor cores take them: under l2 minus a centre, since an offset common to all
   codes decides nothing and costs bits; under cosine scaled by a power of two to a norm in [1, 2). It also measures what the
   error bound needs.
2. ``_search_kernel`` goes through the codes in tiles, never writing a score, and keeps each row's k + 1 smallest costs. A row
   whose adjacent costs all differ by twice the error bound is certified; the number of any other is appended to a list.
   Where there are too few rows to fill the device, each block of them is searched by several programs, each in its part of
   the codes, and ``_merge_kernel`` keeps the k + 1 smallest of all parts: the same costs, hence the same rows certified.
3. ``exhaustive.search`` searches the rows of that list again in float64, by sums of (x - c)^2.
4. ``_measure_kernel`` computes the distances of the chosen codes in float64 and settles the rows that are not finite.

The bound on a cost, for operands x', c' and residuals r: |x'| |r_c| + |r_x| |c| for the rounding of the operands,
(2 D + 32) 2^-23 |x'| |c'| for accumulators that round toward zero and align to the largest of as few as four products,
2^-18 |x'| |c'| where float32 is split in TensorFloat-32 parts (3 2^-20 if the hardware truncates them), and roundings of
|c|^2 / 2. Bytes: N D + K D operands and 12 N results; the codes are read again, from L2, by every block of rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import exhaustive, probe, tile
from vqkit.kernels.exhaustive import load_float64
from vqkit.kernels.parts import load_lists, store_lists
from vqkit.kernels.ranking import best_several, best_two, empty_list, take_best


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors cannot be searched; None when they can."""
    return probe.unavailable(*tensors)


@triton.jit
def _raise_limit(limit_ptr, values):
    """Raise a running maximum of float32 values >= 0; the integers of their bits have the same order."""
    tl.atomic_max(limit_ptr, tl.max(values.to(tl.float32), axis=0).to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["codebook_size"])
def _centre_kernel(
    codes_ptr, low_ptr, high_ptr, centre_ptr, codebook_size,
    D: tl.constexpr, HALF: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The mean of what is finite in a sample of the codes; in HALF precision only where the least and largest code allow it."""
    code = tl.arange(0, CODES).to(tl.int64) * codebook_size // CODES
    dims = tl.program_id(0) * DIMS + tl.arange(0, DIMS)
    inside = dims < D
    value = load_float64(codes_ptr + code[:, None] * D + dims[None, :], (code >= 0)[:, None] & inside[None, :])
    finite = tl.abs(value) < float("inf")
    count = tl.sum(tl.where(finite, 1, 0), axis=0)
    mean = tl.sum(tl.where(finite, value, 0.0), axis=0) / tl.maximum(count, 1)
    if HALF:
        # The operands must stay exact: centre only where y / 2 <= c <= 2 y, so that c - y has no rounding.
        mean = mean.to(tl.float32).to(codes_ptr.dtype.element_ty).to(tl.float32).to(tl.float64)
        low = load_float64(low_ptr + dims, inside)
        high = load_float64(high_ptr + dims, inside)
        near = (low * high > 0) & (tl.maximum(tl.abs(low), tl.abs(high)) <= 2 * tl.minimum(tl.abs(low), tl.abs(high)))
        mean = tl.where(near, mean, 0.0)
    # A sum of the largest float64 values overflows.
    mean = tl.where(tl.abs(mean) < float("inf"), mean, 0.0)
    tl.store(centre_ptr + dims, mean.to(centre_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["codebook_size"])
def _prepare_kernel(
    codes_ptr, centre_ptr, operands_ptr, shifts_ptr, scales_ptr, norms_ptr, state_ptr, codebook_size,
    D: tl.constexpr, COSINE: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Operands c' (K, D), with cost = shift - scale * (x . c'), float64 norms, and the limits |c'|, |r_c|, |c|^2 / 2.

    A norm of NaN marks a code that is not finite: its operand is zero, its shift infinite.
    """
    code = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)
    live = code < codebook_size
    squares = tl.zeros((CODES,), dtype=tl.float64)
    faults = tl.zeros((CODES,), dtype=tl.int32)
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        mask = live[:, None] & (dims < D)[None, :]
        value = load_float64(codes_ptr + code[:, None] * D + dims[None, :], mask)
        faults += tl.sum(tl.where(tl.abs(value) < float("inf"), 0, 1), axis=1)
        value -= tl.load(centre_ptr + dims, mask=dims < D, other=0.0).to(tl.float64)[None, :]
        squares += tl.sum(tl.where(mask, value * value, 0.0), axis=1)
    finite = faults == 0
    norm = tl.sqrt(tl.where(finite, squares, 1.0))
    scale = tl.full((CODES,), 1.0, dtype=tl.float64)
    if COSINE:
        # 2^-e of norm = m 2^e, by its bits, so that the scaled operand is exact.
        exponent = (norm.to(tl.int64, bitcast=True) >> 52) & 2047
        scale = tl.where(exponent < 2047, (2046 - exponent) << 52, 0).to(tl.float64, bitcast=True)
    residuals = tl.zeros((CODES,), dtype=tl.float64)
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        mask = live[:, None] & (dims < D)[None, :]
        value = load_float64(codes_ptr + code[:, None] * D + dims[None, :], mask)
        value -= tl.load(centre_ptr + dims, mask=dims < D, other=0.0).to(tl.float64)[None, :]
        value = tl.where(finite[:, None], value * scale[:, None], 0.0)
        operand = value.to(tl.float32).to(operands_ptr.dtype.element_ty)
        tl.store(operands_ptr + code[:, None] * D + dims[None, :], operand, mask=mask)
        residual = value - operand.to(tl.float64)
        residuals += tl.sum(tl.where(mask, residual * residual, 0.0), axis=1)
    considered = live & finite
    if COSINE:
        scaled = norm * scale
        tl.store(scales_ptr + code, (1.0 / tl.where(scaled > 0, scaled, 1.0)).to(tl.float32), mask=live)
        tl.store(shifts_ptr + code, tl.where(finite, 0.0, float("inf")).to(tl.float32), mask=live)
        # A norm beyond float64 leaves nothing to bound: every row goes to the exhaustive search.
        residuals = tl.where(scale > 0, residuals, float("inf"))
        _raise_limit(state_ptr, tl.where(considered, 1.0, 0.0))
    else:
        tl.store(shifts_ptr + code, tl.where(finite, 0.5 * squares, float("inf")).to(tl.float32), mask=live)
        _raise_limit(state_ptr, tl.where(considered, norm, 0.0))
        _raise_limit(state_ptr + 2, tl.where(considered, 0.5 * squares, 0.0))
    # A zero code has similarity zero with everything.
    tl.store(norms_ptr + code, tl.where(finite, tl.where(norm > 0, norm, 1.0), float("nan")), mask=live)
    _raise_limit(state_ptr + 1, tl.where(considered, tl.sqrt(residuals), 0.0))


@triton.jit
def _centred(latents_ptr, centre_ptr, rows, live, start, D: tl.constexpr, DIMS: tl.constexpr):
    """A chunk of the rows minus the centre (ROWS, DIMS), float32 or float64; what is not finite or not there is zero."""
    dims = start + tl.arange(0, DIMS)
    mask = live[:, None] & (dims < D)[None, :]
    value = tl.load(latents_ptr + rows[:, None] * D + dims[None, :], mask=mask, other=0.0).to(centre_ptr.dtype.element_ty)
    centre = tl.load(centre_ptr + dims, mask=dims < D, other=0.0)
    return tl.where(mask & (tl.abs(value) < float("inf")), value - centre[None, :], 0.0)


@triton.jit
def _measured(value, operand):
    """Row sums of squares of the operand and of what it lacks, and the largest magnitude: three (ROWS,), float32."""
    rounded = operand.to(value.dtype)
    lacking = (value - rounded).to(tl.float32)
    rounded = rounded.to(tl.float32)
    peak = tl.max(tl.where(value == 0, 0.0, 1.0), axis=1)
    return tl.sum(rounded * rounded, axis=1), tl.sum(lacking * lacking, axis=1), peak


@triton.jit
def _cost_bound(squares, lacking, state_ptr, D: tl.constexpr, RELATIVE: tl.constexpr):
    """The largest error of any cost of each row (ROWS,); not finite where the arithmetic may have overflowed."""
    # The added terms cover what underflows, in the squares as in the products.
    norm = tl.sqrt(squares + D * 2.4e-38)
    code_norm = tl.load(state_ptr).to(tl.float32, bitcast=True) + D * 1e-18
    code_lacking = tl.load(state_ptr + 1).to(tl.float32, bitcast=True)
    half_square = tl.load(state_ptr + 2).to(tl.float32, bitcast=True)
    operands = norm * code_lacking + tl.sqrt(lacking + D * 2.4e-38) * code_norm
    return norm * code_norm * RELATIVE + operands + half_square * 4.8e-7 + D * 1e-36


@triton.jit
def _settle(
    kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr, KEEP: tl.constexpr
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
    slot = tl.atomic_add(state_ptr + 3 + tl.zeros_like(column), 1, mask=pending)
    tl.store(pending_ptr + slot, rows, mask=pending)


@triton.jit(do_not_specialize=["n", "codebook_size", "span"])
def _search_kernel(
    latents_ptr, centre_ptr, operands_ptr, shifts_ptr, scales_ptr, state_ptr, indices_ptr, pending_ptr,
    costs_ptr, columns_ptr, bounds_ptr, n, codebook_size, span, slack, D: tl.constexpr, COSINE: tl.constexpr,
    KEEP: tl.constexpr, LANES: tl.constexpr, WHOLE: tl.constexpr, RELATIVE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Search ``span`` codes for a block of rows, then settle the rows or, unless these are the WHOLE, store what was found."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    live = rows < n
    squares = tl.zeros((ROWS,), dtype=tl.float32)
    lacking = tl.zeros((ROWS,), dtype=tl.float32)
    peak = tl.zeros((ROWS,), dtype=tl.float32)
    for start in range(0, D, DIMS):
        value = _centred(latents_ptr, centre_ptr, rows, live, start, D, DIMS)
        chunk_squares, chunk_lacking, chunk_peak = _measured(value, value.to(operands_ptr.dtype.element_ty))
        squares += chunk_squares
        lacking += chunk_lacking
        peak = tl.maximum(peak, chunk_peak)
    if D <= DIMS:
        operand = _centred(latents_ptr, centre_ptr, rows, live, 0, D, DIMS).to(operands_ptr.dtype.element_ty)
    if KEEP == 2:
        best = tl.full((ROWS,), float("inf"), dtype=tl.float32)
        second = tl.full((ROWS,), float("inf"), dtype=tl.float32)
        index = tl.zeros((ROWS,), dtype=tl.int32)
    else:
        kept_costs, kept_columns = empty_list(ROWS, LANES, tl.float32)
    begin, end = 0, codebook_size
    if not WHOLE:
        begin = part * span
        end = tl.minimum(begin + span, codebook_size)
    for first in range(begin, end, CODES):
        columns = first + tl.arange(0, CODES)
        present = columns < codebook_size
        products = tl.zeros((ROWS, CODES), dtype=tl.float32)
        for start in range(0, D, DIMS):
            if D > DIMS:
                operand = _centred(latents_ptr, centre_ptr, rows, live, start, D, DIMS).to(operands_ptr.dtype.element_ty)
            dims = start + tl.arange(0, DIMS)
            address = columns.to(tl.int64)[None, :] * D + dims[:, None]
            code = tl.load(operands_ptr + address, mask=present[None, :] & (dims < D)[:, None], other=0.0)
            products = tl.dot(operand, code, products, input_precision=PRECISION)
        if COSINE:
            products *= tl.load(scales_ptr + columns, mask=present, other=1.0)[None, :]
        costs = tl.load(shifts_ptr + columns, mask=present, other=float("inf"))[None, :] - products
        if KEEP == 2:
            best, index, second = best_two(costs, columns, best, index, second)
        else:
            kept_costs, kept_columns = best_several(costs, columns, kept_costs, kept_columns, KEEP, LANES)

    if KEEP == 2:
        kept_costs = tl.join(best, second)
        # Nobody asks which code came second.
        kept_columns = tl.join(index, tl.full((ROWS,), 2147483647, dtype=tl.int32))
    bound = slack * _cost_bound(squares, lacking, state_ptr, D, RELATIVE)
    if COSINE:
        # A zero row is as near to all codes that are finite: the costs are exact.
        bound = tl.where((peak == 0) & (bound < float("inf")), 0.0, bound)
    if WHOLE:
        _settle(kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr, KEEP)
    else:
        store_lists(costs_ptr, columns_ptr, part * n + rows, live, kept_costs, kept_columns, LANES)
        tl.store(bounds_ptr + rows, bound, mask=live & (part == 0))


@triton.jit(do_not_specialize=["n", "parts"])
def _merge_kernel(
    costs_ptr, columns_ptr, bounds_ptr, state_ptr, indices_ptr, pending_ptr, n, parts,
    KEEP: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Settle a block of rows whose codes were searched in parts."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    kept_costs, kept_columns = load_lists(costs_ptr, columns_ptr, rows, live, n, parts, PARTS, LANES)
    bound = tl.load(bounds_ptr + rows, mask=live, other=0.0)
    _settle(kept_costs, kept_columns, bound, rows, live, state_ptr, indices_ptr, pending_ptr, KEEP)


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


class _Codes(NamedTuple):
    """What ``_prepare_kernel`` makes of the codes; ``state`` holds three limits and the count of pending rows."""

    centre: Tensor
    operands: Tensor
    shifts: Tensor
    scales: Tensor
    norms: Tensor
    state: Tensor


def _centre(codes: Tensor, cosine: bool) -> Tensor:
    """What is subtracted from rows and codes (D,), float32 or float64: any finite value is right, their mean is best."""
    size, d = codes.shape
    compute = torch.promote_types(codes.dtype, torch.float32)
    if cosine:
        return codes.new_zeros(d, dtype=compute)
    centre = codes.new_empty(d, dtype=compute)
    half = compute != codes.dtype
    # Codes that are not finite, as rows left out of a search may be, must not cost the others their centre.
    low, high = (codes.nan_to_num(torch.inf).amin(0), codes.nan_to_num(-torch.inf).amax(0)) if half else (centre, centre)
    sizes = tile.sample(d, probe.device_kind(codes))
    _centre_kernel[(triton.cdiv(d, sizes.dims),)](
        codes, low, high, centre, size, D=d, HALF=half, CODES=sizes.columns, DIMS=sizes.dims, num_warps=sizes.warps
    )
    return centre


def _prepare(codes: Tensor, cosine: bool) -> _Codes:
    size, d = codes.shape
    operand = torch.float32 if codes.dtype == torch.float64 else probe.stored(codes.dtype)
    shifts, scales = codes.new_empty((2, size), dtype=torch.float32)
    prepared = _Codes(
        centre=_centre(codes, cosine),
        operands=torch.empty_like(codes, dtype=operand),
        shifts=shifts,
        scales=scales,
        norms=codes.new_empty(size, dtype=torch.float64),
        state=codes.new_zeros(4, dtype=torch.int32),
    )
    sizes = tile.rows(d, probe.device_kind(codes))
    _prepare_kernel[(triton.cdiv(size, sizes.rows),)](
        codes, *prepared, size, D=d, COSINE=cosine, CODES=sizes.rows, DIMS=sizes.dims, num_warps=sizes.warps
    )
    return prepared


def relative_bound(d: int, split: bool) -> float:
    """The largest error of a tensor-core product x . c over D elements, relative to |x| |c|.

    split: operands are float32, split in TensorFloat-32 parts; else they are half precision and their products exact.
    """
    return (2 * d + 32) * 2.0**-23 + (2.0**-18 if split else 0.0)


def _search(latents: Tensor, codes: Tensor, prepared: _Codes, indices: Tensor, cosine: bool, exact: bool) -> None:
    """Fill ``indices`` (N, k)."""
    (n, k), (size, d) = indices.shape, codes.shape
    device, lanes = probe.device_kind(latents), triton.next_power_of_2(k + 1)
    centre, operands, shifts, scales, norms, state = prepared
    split = operands.dtype == torch.float32
    pending = latents.new_empty(n, dtype=torch.int64)
    sizes = tile.search(n, size, d, operands.dtype, device, k + 1)
    blocks, tiles = triton.cdiv(n, sizes.rows), triton.cdiv(size, sizes.columns)
    # Two programs a multiprocessor.
    span = triton.cdiv(tiles, tile.parts(2 * probe.processors(latents) // blocks, tiles)) * sizes.columns
    parts = triton.cdiv(size, span)
    lists = (parts if parts > 1 else 0, n, lanes)
    costs, columns = shifts.new_empty(lists), pending.new_empty(lists, dtype=torch.int32)
    bounds = shifts.new_empty(n if parts > 1 else 0)
    _search_kernel[(blocks, parts)](
        latents, centre, operands, shifts, scales, state, indices, pending, costs, columns, bounds,
        n, size, span, 2.02 if exact else 0.0, D=d, COSINE=cosine, KEEP=k + 1, LANES=lanes, WHOLE=parts == 1,
        RELATIVE=relative_bound(d, split), PRECISION="tf32x3" if split else "ieee",
        ROWS=sizes.rows, CODES=sizes.columns, DIMS=sizes.dims, num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    if parts > 1:
        sizes = tile.merge(lanes, device)
        _merge_kernel[(triton.cdiv(n, sizes.rows),)](
            costs, columns, bounds, state, indices, pending, n, parts,
            KEEP=k + 1, LANES=lanes, ROWS=sizes.rows, PARTS=tile.MOST_PARTS, num_warps=sizes.warps,
        )  # fmt: skip
    # Even the fast search sends what overflowed here.
    exhaustive.search(latents, codes, norms, state[3:], pending, indices, cosine)


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
        _search(latents, codes, _prepare(codes, cosine), indices, cosine, exact)
        sizes = tile.rows(d, probe.device_kind(latents))
        _measure_kernel[(triton.cdiv(n, sizes.rows),)](
            latents, codes, indices, distances, n,
            D=d, COSINE=cosine, K=k, ROWS=sizes.rows, DIMS=sizes.dims, num_warps=sizes.warps,
        )  # fmt: skip
    return distances, indices
