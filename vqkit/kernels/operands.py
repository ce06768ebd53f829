"""The codes as the tensor-core search takes them, and what its error bound needs to know of them.

Under l2 a centre is subtracted from codes and rows, since an offset common to all codes decides nothing and costs bits; under
cosine a code is scaled by a power of two to a norm in [1, 2). float16 and bfloat16 are multiplied as they are. float32 and
float64 are split in two bfloat16 parts, which hold 16 bits: x . c = x_low . c_high + x_high . c_low + x_high . c_high.

The table is padded with codes that never win to whole tiles, and with zeros to whole chunks of D, so that the search masks
nothing. Within a tile the codes are in the order that ``place`` gives. Bytes: K D read twice, two or four bytes an element
written.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import probe, tile
from vqkit.kernels.exhaustive import load_float64


@triton.jit
def centred(latents_ptr, centre_ptr, rows, live, start, D: tl.constexpr, DIMS: tl.constexpr):
    """A chunk of the rows minus the centre (ROWS, DIMS), float32 or float64; what is not finite or not there is zero."""
    dims = start + tl.arange(0, DIMS)
    mask = live[:, None] & (dims < D)[None, :]
    value = tl.load(latents_ptr + rows[:, None] * D + dims[None, :], mask=mask, other=0.0).to(centre_ptr.dtype.element_ty)
    centre = tl.load(centre_ptr + dims, mask=dims < D, other=0.0)
    return tl.where(mask & (tl.abs(value) < float("inf")), value - centre[None, :], 0.0)


@triton.jit
def split(value, ROUNDED: tl.constexpr, PARTS: tl.constexpr):
    """Value = high + low + residual: two parts that ROUNDED holds, as float32, and the rest; low is zero where PARTS is 1."""
    high = value.to(tl.float32).to(ROUNDED).to(tl.float32)
    residual = value - high
    low = tl.zeros_like(high)
    if PARTS == 2:
        # What is beyond ROUNDED has an infinite residual, not a NaN.
        low = tl.where(tl.abs(high) < float("inf"), residual, 0.0).to(tl.float32).to(ROUNDED).to(tl.float32)
        residual -= low
    return high, low, residual


@triton.jit
def place(code, CODES: tl.constexpr, GROUP: tl.constexpr, SLOTS: tl.constexpr):
    """The line of the table for a code: the columns ``ranking.best_groups`` takes together are codes that follow each other."""
    column = code % CODES
    member, slot, block = column % GROUP, column // GROUP % SLOTS, column // (GROUP * SLOTS)
    return code - column + (block * GROUP + member) * SLOTS + slot


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
    D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ROUNDED: tl.constexpr, COSINE: tl.constexpr,
    TILE: tl.constexpr, GROUP: tl.constexpr, SLOTS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Operands c' (lines, PARTS * WIDTH), cost = shift - scale * (x . c'), float64 norms (K,), and the limits of ``state``.

    A norm of NaN marks a code that is not finite: its operand is zero, its shift infinite, as those of the padding.
    """
    code = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)
    live = code < codebook_size
    padded = code < tl.cdiv(codebook_size, TILE).to(tl.int64) * TILE
    line = place(code, TILE, GROUP, SLOTS)
    squares = tl.zeros((CODES,), dtype=tl.float64)
    faults = tl.zeros((CODES,), dtype=tl.int32)
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        mask = live[:, None] & (dims < D)[None, :]
        value = load_float64(codes_ptr + code[:, None] * D + dims[None, :], mask)
        faults += tl.sum(tl.where(tl.abs(value) < float("inf"), 0, 1), axis=1)
        value -= tl.load(centre_ptr + dims, mask=dims < D, other=0.0).to(tl.float64)[None, :]
        squares += tl.sum(tl.where(mask, value * value, 0.0), axis=1)
    considered = live & (faults == 0)
    norm = tl.sqrt(tl.where(considered, squares, 1.0))
    scale = tl.full((CODES,), 1.0, dtype=tl.float64)
    if COSINE:
        # 2^-e of norm = m 2^e, by its bits, so that the scaled operand is exact.
        exponent = (norm.to(tl.int64, bitcast=True) >> 52) & 2047
        scale = tl.where(exponent < 2047, (2046 - exponent) << 52, 0).to(tl.float64, bitcast=True)
    residuals = tl.zeros((CODES,), dtype=tl.float64)
    lows = tl.zeros((CODES,), dtype=tl.float64)
    for start in range(0, WIDTH, DIMS):
        dims = start + tl.arange(0, DIMS)
        inside = dims < D
        value = load_float64(codes_ptr + code[:, None] * D + dims[None, :], live[:, None] & inside[None, :])
        value -= tl.load(centre_ptr + dims, mask=inside, other=0.0).to(tl.float64)[None, :]
        value = tl.where(considered[:, None], value * scale[:, None], 0.0)
        high, low, residual = split(value, ROUNDED, PARTS)
        address = operands_ptr + line[:, None] * (PARTS * WIDTH) + dims[None, :]
        mask = padded[:, None] & (dims < WIDTH)[None, :]
        tl.store(address, high.to(operands_ptr.dtype.element_ty), mask=mask)
        if PARTS == 2:
            tl.store(address + WIDTH, low.to(operands_ptr.dtype.element_ty), mask=mask)
            lows += tl.sum(low.to(tl.float64) * low.to(tl.float64), axis=1)
        residuals += tl.sum(residual * residual, axis=1)
    if COSINE:
        scaled = norm * scale
        tl.store(scales_ptr + line, (1.0 / tl.where(scaled > 0, scaled, 1.0)).to(tl.float32), mask=padded)
        tl.store(shifts_ptr + line, tl.where(considered, 0.0, float("inf")).to(tl.float32), mask=padded)
        # A norm beyond float64 leaves nothing to bound: every row goes to the exhaustive search.
        residuals = tl.where(scale > 0, residuals, float("inf"))
        _raise_limit(state_ptr, tl.where(considered, 1.0, 0.0))
    else:
        tl.store(shifts_ptr + line, tl.where(considered, 0.5 * squares, float("inf")).to(tl.float32), mask=padded)
        _raise_limit(state_ptr, tl.where(considered, norm, 0.0))
        _raise_limit(state_ptr + 3, tl.where(considered, 0.5 * squares, 0.0))
    # A zero code has similarity zero with everything.
    tl.store(norms_ptr + code, tl.where(considered, tl.where(norm > 0, norm, 1.0), float("nan")), mask=live)
    _raise_limit(state_ptr + 1, tl.where(considered, tl.sqrt(residuals), 0.0))
    if PARTS == 2:
        _raise_limit(state_ptr + 2, tl.where(considered, tl.sqrt(lows), 0.0))


@triton.jit(do_not_specialize=["n"])
def _split_kernel(
    latents_ptr, centre_ptr, table_ptr, n, D: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ROUNDED: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The rows as the search multiplies them (whole blocks, PARTS * WIDTH), zeros where there is no row."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1) * DIMS
    high, low, _ = split(centred(latents_ptr, centre_ptr, rows, rows < n, start, D, DIMS), ROUNDED, PARTS)
    address = table_ptr + rows[:, None] * (PARTS * WIDTH) + (start + tl.arange(0, DIMS))[None, :]
    tl.store(address, high.to(table_ptr.dtype.element_ty))
    if PARTS == 2:
        tl.store(address + WIDTH, low.to(table_ptr.dtype.element_ty))


class Operands(NamedTuple):
    """What ``_prepare_kernel`` makes of the codes, ``table`` (lines, parts * width) a line a code.

    ``state``: the largest |c'|, |residual|, |low part| and |c|^2 / 2 as float32, and the count of pending rows.
    """

    centre: Tensor
    table: Tensor
    shifts: Tensor
    scales: Tensor
    norms: Tensor
    state: Tensor


PENDING = 4


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


def parts(dtype: torch.dtype) -> int:
    """How many numbers of 16 bits stand for one of the latents and codes."""
    return 1 if dtype in (torch.float16, torch.bfloat16) else 2


def rounded(dtype: torch.dtype) -> tl.dtype:
    """The type of those numbers."""
    return tl.float16 if dtype == torch.float16 else tl.bfloat16


def _stored(dtype: torch.dtype) -> torch.dtype:
    return probe.stored(torch.float16 if dtype == torch.float16 else torch.bfloat16)


def split_rows(latents: Tensor, centre: Tensor, search: tile.Search) -> Tensor:
    """The latents (N, D) for a search that loads them chunk by chunk (whole blocks of rows, parts * width)."""
    (n, d), blocks, chunks = latents.shape, triton.cdiv(latents.shape[0], search.rows), triton.cdiv(latents.shape[1], search.dims)
    width = chunks * search.dims
    table = latents.new_empty((blocks * search.rows, parts(latents.dtype) * width), dtype=_stored(latents.dtype))
    _split_kernel[(blocks, chunks)](
        latents, centre, table, n, D=d, WIDTH=width, PARTS=parts(latents.dtype), ROUNDED=rounded(latents.dtype),
        ROWS=search.rows, DIMS=search.dims, num_warps=search.warps,
    )  # fmt: skip
    return table


def prepare(codes: Tensor, cosine: bool, search: tile.Search) -> Operands:
    """The codes (K, D) for a search in such tiles."""
    size, d = codes.shape
    width, lines = triton.cdiv(d, search.dims) * search.dims, triton.cdiv(size, search.codes) * search.codes
    shifts, scales = codes.new_empty((2, lines), dtype=torch.float32)
    prepared = Operands(
        centre=_centre(codes, cosine),
        table=codes.new_empty((lines, parts(codes.dtype) * width), dtype=_stored(codes.dtype)),
        shifts=shifts,
        scales=scales,
        norms=codes.new_empty(size, dtype=torch.float64),
        state=codes.new_zeros(PENDING + 1, dtype=torch.int32),
    )
    sizes = tile.rows(d, probe.device_kind(codes))
    _prepare_kernel[(triton.cdiv(lines, sizes.rows),)](
        codes, *prepared, size, D=d, WIDTH=width, PARTS=parts(codes.dtype), ROUNDED=rounded(codes.dtype), COSINE=cosine,
        TILE=search.codes, GROUP=search.group, SLOTS=search.slots, CODES=sizes.rows, DIMS=sizes.dims, num_warps=sizes.warps,
    )  # fmt: skip
    return prepared
