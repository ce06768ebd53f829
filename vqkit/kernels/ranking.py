"""Device functions that keep the smallest costs of every row while tiles of columns go by.

Columns or tiles must come in ascending order: an equal cost never displaces an earlier one, so that ties go to the lowest column.
An infinite cost is never kept.
"""

import triton
import triton.language as tl


@triton.jit
def empty_groups(ROWS: tl.constexpr, POSITIONS: tl.constexpr):
    """What ``best_groups`` keeps, before any tile."""
    none = tl.full((ROWS, POSITIONS), float("inf"), dtype=tl.float32)
    return none, tl.zeros((ROWS, POSITIONS), dtype=tl.int32), none


@triton.jit
def best_groups(costs, number, best, numbers, second, GROUP: tl.constexpr, SLOTS: tl.constexpr):
    """Update the least cost of each row's groups, the number of the tile that had it, and the least cost in the other tiles.

    A group is GROUP columns of a tile, SLOTS apart, which one thread holds: nothing crosses threads, and but for the minimum
    over a group everything is done for one in GROUP columns. Costs are (rows, columns), what is kept (rows, columns / GROUP).
    """
    ROWS: tl.constexpr = costs.shape[0]
    CODES: tl.constexpr = costs.shape[1]
    apart = tl.reshape(costs, (ROWS, CODES // (GROUP * SLOTS), GROUP, SLOTS))
    least = tl.reshape(tl.min(apart, axis=2), (ROWS, CODES // GROUP))
    second = tl.minimum(second, tl.maximum(best, least))
    numbers = tl.where(least < best, number, numbers)
    return tl.minimum(best, least), numbers, second


@triton.jit
def empty_list(ROWS: tl.constexpr, LANES: tl.constexpr, DTYPE: tl.constexpr):
    """Costs and columns (ROWS, LANES) of a list that nothing has entered; the columns differ, so that each names its lane."""
    costs = tl.full((ROWS, LANES), float("inf"), dtype=DTYPE)
    return costs, tl.zeros((ROWS, LANES), dtype=tl.int32) + (2147483647 - tl.arange(0, LANES))[None, :]


@triton.jit
def best_several(costs, columns, kept_costs, kept_columns, KEEP: tl.constexpr, LANES: tl.constexpr):
    """Update the KEEP smallest costs of each row, in no order, by a tile of costs (rows, columns)."""
    in_use = (tl.arange(0, LANES) < KEEP)[None, :]
    for _ in range(KEEP):
        cost = tl.min(costs, axis=1)
        column = tl.min(tl.where(costs == cost[:, None], columns[None, :], 2147483647), axis=1)
        costs = tl.where(columns[None, :] == column[:, None], float("inf"), costs)
        worst = tl.max(tl.where(in_use, kept_costs, -float("inf")), axis=1)
        worst_column = tl.max(tl.where(in_use & (kept_costs == worst[:, None]), kept_columns, -1), axis=1)
        enters = in_use & (kept_columns == worst_column[:, None]) & (cost < worst)[:, None]
        kept_costs = tl.where(enters, cost[:, None], kept_costs)
        kept_columns = tl.where(enters, column[:, None], kept_columns)
    return kept_costs, kept_columns


@triton.jit
def take_best(kept_costs, kept_columns):
    """The smallest cost of each row's list, its column, and the list's costs without it."""
    cost = tl.min(kept_costs, axis=1)
    column = tl.min(tl.where(kept_costs == cost[:, None], kept_columns, 2147483647), axis=1)
    return cost, column, tl.where(kept_columns == column[:, None], float("inf"), kept_costs)
