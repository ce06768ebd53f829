"""Sums of rows over lists of rows in compressed form, in a fixed order and without float atomics.

y[s] = sum over e in offsets[s] .. offsets[s + 1] of weights[e] * values[members[e]].

Each list is cut into pieces of at most ``PIECE`` members and every piece is summed by one program lane, so that a list that
holds nearly everything does not occupy one program. The sum of a list of one piece is written at once; the pieces of a longer
one go to scratch and are added in order. Bytes: every member's row is read once, every sum written once; scratch is at most
2 E / PIECE rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import probe, tile

PIECE = 256


@triton.jit
def _sum_members(
    values_ptr, members_ptr, weights_ptr, start, stop, dims, D, GATHERED: tl.constexpr, WEIGHTED: tl.constexpr,
    LISTS: tl.constexpr, MEMBERS: tl.constexpr, DIMS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The sum of each lane's rows start .. stop: (LISTS, DIMS)."""
    total = tl.zeros((LISTS, DIMS), dtype=COMPUTE)
    longest = tl.max(stop - start, axis=0).to(tl.int32)
    for first in range(0, longest, MEMBERS):
        member = start[:, None] + (first + tl.arange(0, MEMBERS))[None, :]  # (LISTS, MEMBERS)
        live = member < stop[:, None]
        row = tl.load(members_ptr + member, mask=live, other=0).to(tl.int64) if GATHERED else member
        mask = live[:, :, None] & (dims < D)[None, None, :]
        value = tl.load(values_ptr + row[:, :, None] * D + dims[None, None, :], mask=mask, other=0.0).to(COMPUTE)
        if WEIGHTED:
            value *= tl.load(weights_ptr + member, mask=live, other=0.0).to(COMPUTE)[:, :, None]
        total += tl.sum(value, axis=1)
    return total


@triton.jit(do_not_specialize=["pieces", "lists"])
def _pieces_kernel(
    values_ptr, members_ptr, weights_ptr, offsets_ptr, owners_ptr, ends_ptr, split_ends_ptr, sums_ptr, scratch_ptr,
    pieces, lists, D: tl.constexpr, PIECE: tl.constexpr, GATHERED: tl.constexpr, WEIGHTED: tl.constexpr,
    LISTS: tl.constexpr, MEMBERS: tl.constexpr, DIMS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sum every piece; into ``sums`` where it is all of its list, else into ``scratch``."""
    piece = tl.program_id(0).to(tl.int64) * LISTS + tl.arange(0, LISTS)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    # More pieces are launched than there are: how many there are is known on the device only.
    owner = tl.load(owners_ptr + piece, mask=piece < pieces, other=lists)
    live = owner < lists
    end = tl.load(ends_ptr + owner, mask=live, other=0)
    first = tl.load(ends_ptr + owner - 1, mask=live & (owner > 0), other=0)
    list_stop = tl.load(offsets_ptr + owner + 1, mask=live, other=0)
    start = tl.load(offsets_ptr + owner, mask=live, other=0) + (piece - first) * PIECE
    stop = tl.where(live, tl.minimum(start + PIECE, list_stop), start)
    total = _sum_members(
        values_ptr, members_ptr, weights_ptr, start, stop, dims, D, GATHERED, WEIGHTED, LISTS, MEMBERS, DIMS, COMPUTE
    )
    whole = live & (end - first == 1)
    split = live & (end - first > 1)
    slot = tl.load(split_ends_ptr + owner, mask=split, other=0) - (end - piece)
    inside = (dims < D)[None, :]
    tl.store(sums_ptr + owner[:, None] * D + dims[None, :], total, mask=whole[:, None] & inside)
    tl.store(scratch_ptr + slot[:, None] * D + dims[None, :], total, mask=split[:, None] & inside)


@triton.jit(do_not_specialize=["lists"])
def _combine_kernel(
    scratch_ptr, ends_ptr, split_ends_ptr, sums_ptr, lists, D: tl.constexpr,
    LISTS: tl.constexpr, MEMBERS: tl.constexpr, DIMS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Add the pieces of the lists that have several, in order."""
    owner = tl.program_id(0).to(tl.int64) * LISTS + tl.arange(0, LISTS)
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    live = owner < lists
    end = tl.load(ends_ptr + owner, mask=live, other=0)
    first = tl.load(ends_ptr + owner - 1, mask=live & (owner > 0), other=0)
    split = live & (end - first > 1)
    stop = tl.load(split_ends_ptr + owner, mask=split, other=0)
    start = tl.where(split, stop - (end - first), stop)
    total = _sum_members(
        scratch_ptr, scratch_ptr, scratch_ptr, start, stop, dims, D, False, False, LISTS, MEMBERS, DIMS, COMPUTE
    )
    tl.store(sums_ptr + owner[:, None] * D + dims[None, :], total, mask=split[:, None] & (dims < D)[None, :])


def segment_sums(values: Tensor, offsets: Tensor, members: Tensor | None, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sum the rows of ``values`` over S lists.

    values: (R, D). offsets: (S + 1,) int64, non-decreasing. members: row numbers, or None where member e is row e; positions
    before offsets[0] belong to no list. weights: one a member, or None for 1. Returns (S, D) in ``dtype``, accumulated in
    float32 (float64 for float64 values).
    """
    lists, d = len(offsets) - 1, values.shape[1]
    count = len(values if members is None else members)
    compute = torch.float64 if values.dtype == torch.float64 else torch.float32
    sums = values.new_empty((lists, d), dtype=probe.stored(dtype))
    if sums.numel() == 0:
        return sums.to(dtype)
    lengths = offsets.diff()
    pieces = lengths.add(PIECE - 1).div_(PIECE, rounding_mode="floor").clamp_(min=1)
    ends = pieces.cumsum(0)
    split_ends = pieces.where(pieces > 1, 0).cumsum(0)
    most = triton.cdiv(count, PIECE) + lists
    owners = torch.searchsorted(ends, torch.arange(most, device=values.device), right=True)
    scratch = values.new_empty((max(1, 2 * triton.cdiv(count, PIECE)), d), dtype=compute)
    sizes = tile.segments(d, probe.device_kind(values))
    blocks = triton.cdiv(d, sizes.dims)
    shape = {"D": d, "LISTS": sizes.rows, "MEMBERS": sizes.columns, "DIMS": sizes.dims, "num_warps": sizes.warps}
    shape["COMPUTE"] = tl.float64 if compute == torch.float64 else tl.float32
    gathered = values if members is None else members
    weighted = values if weights is None else weights
    with probe.on_device_of(values):
        _pieces_kernel[(triton.cdiv(most, sizes.rows), blocks)](
            values, gathered, weighted, offsets, owners, ends, split_ends, sums, scratch, most, lists,
            PIECE=PIECE, GATHERED=members is not None, WEIGHTED=weights is not None, **shape,
        )  # fmt: skip
        _combine_kernel[(triton.cdiv(lists, sizes.rows), blocks)](scratch, ends, split_ends, sums, lists, **shape)
    return sums.to(dtype)
