"""Device functions for lists of smallest costs that several programs found, each in its own part of the columns.

A list has LANES costs and columns; an infinite cost is an empty place. What one program writes per part another reads side by
side and ranks with ``ranking.take_best``: equal costs go to the lowest column, whichever program was the first.
"""

import triton
import triton.language as tl


@triton.jit
def store_lists(costs_ptr, columns_ptr, places, live, kept_costs, kept_columns, LANES: tl.constexpr):
    """Write the lists (rows, LANES) of one part at ``places`` (rows,), counted in lists."""
    address = places[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(costs_ptr + address, kept_costs, mask=live[:, None])
    tl.store(columns_ptr + address, kept_columns, mask=live[:, None])


@triton.jit
def load_lists(costs_ptr, columns_ptr, places, live, step, parts, PARTS: tl.constexpr, LANES: tl.constexpr):
    """The lists of ``parts`` parts, ``step`` lists apart, in a row (rows, PARTS * LANES)."""
    lane = tl.arange(0, PARTS * LANES)
    part = lane // LANES
    address = (places[:, None] + part[None, :] * step) * LANES + (lane % LANES)[None, :]
    mask = live[:, None] & (part < parts)[None, :]
    costs = tl.load(costs_ptr + address, mask=mask, other=float("inf"))
    return costs, tl.load(columns_ptr + address, mask=mask, other=2147483647)
