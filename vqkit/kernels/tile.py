"""Tile sizes: plain functions of the problem and the device, so that a shape always compiles the same kernel.

``device`` is a compute capability such as (9, 0), or "interpreter", where a step costs milliseconds whatever its size and
tiles are therefore large. No size follows N beyond one threshold: another batch size must not compile another kernel; ``parts``
does, but is an argument of the kernels.
"""

import math
from typing import NamedTuple

INTERPRETER = "interpreter"
Device = tuple[int, int] | str

# Fewer rows than this do not fill a GPU with tall tiles.
_FEW_ROWS = 16384

# Parts of the codes for which the programs that merge them have room.
MOST_PARTS = 128
# Fewer tiles of codes than this take less time than starting and merging another part.
_LEAST_TILES = 4

# Triton's layouts of three-dimensional tiles break on a last dimension of one.
_LEAST_DIMS = 4


class Tile(NamedTuple):
    """Rows and columns of one step, the chunk of D it takes, and how many warps and pipeline stages compute it."""

    rows: int
    columns: int
    dims: int
    warps: int
    stages: int


class Search(NamedTuple):
    """One step of the tensor-core search and how the kernel is compiled for it.

    rows, codes, dims: of one product; where dims is less than D the rows are loaded again for every tile of codes.
    group, slots: ``ranking.best_groups`` takes the least of ``group`` columns that lie ``slots`` apart, which one thread has to
        hold: it does where ``slots`` are what the tensor cores deal out to all threads that share a row of a product.
    registers: the most a thread may have, None for what the compiler likes.
    """

    rows: int
    codes: int
    dims: int
    warps: int
    stages: int
    group: int = 1
    slots: int = 1
    registers: int | None = None


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def search(n: int, k: int, d: int, parts: int, device: Device, keep: int) -> Search:
    """The tensor-core search of ``keep`` costs a row, by operands in so many parts of 16 bits."""
    # A dot needs 16 of everything.
    dims = max(16, _power(d))
    if device == INTERPRETER:
        return _grouped(Search(128, 256, min(dims, 128), 4, 1, slots=8), k, d) if keep == 2 else Search(128, 256, min(dims, 128), 4, 1)
    codes = min(max(16, _power(k)), 128)
    if keep > 2:
        # The lists of best codes and what ranks them take the registers.
        return Search(64, min(codes, 64), min(dims, 64 // parts), 4, 2)
    for_generation = {9: _hopper, 10: _blackwell, 11: _blackwell}.get(device[0], _ampere)
    return _grouped(for_generation(n < _FEW_ROWS, codes, dims, parts), k, d)


def _grouped(search: Search, k: int, d: int) -> Search:
    """The search with groups as large as its slots leave room for, and no larger than pays.

    The cost of a pair of a row and a code falls with a group's size, that of a row grows with it and with D, since the group is
    searched again: the sum is least near sqrt(K / D). Smaller groups than eight take too many registers.
    """
    slots = min(search.slots, search.codes)
    group = min(max(8, _power(math.isqrt(k // d))), 16, search.codes // slots)
    return search._replace(group=group, slots=slots)


def _hopper(few: bool, codes: int, dims: int, parts: int) -> Search:
    """Rows stay in shared memory where two tiles of codes fit beside them; a thread has two of eight neighbouring columns."""
    rows, warps = (64, 4) if few else (128, 8)
    if dims * parts > 256:
        return Search(rows, codes, 64, warps, 3, slots=8)
    # Two programs a multiprocessor, one multiplying while the other ranks, unless shared memory has room for one only.
    registers = 128 if dims <= 64 and not few else None
    return Search(rows, codes, dims, warps, 3 if dims * parts <= 64 else 2, slots=8, registers=registers)


def _blackwell(few: bool, codes: int, dims: int, parts: int) -> Search:
    """A product takes 128 rows, and a thread reads one from tensor memory, or half of one where there are eight warps."""
    if dims * parts > 256 or dims > 128:
        return Search(128, codes, dims if dims * parts <= 256 else 64, 8 if codes == 128 else 4, 2, slots=2)
    return Search(128, min(codes, 64), dims, 4, 3 if dims * parts <= 128 else 2, slots=2)


def _ampere(few: bool, codes: int, dims: int, parts: int) -> Search:
    """Rows, or a chunk of them, are held in registers; four warps share a row of products."""
    rows, warps = (64, 4) if few or parts == 2 else (128, 8)
    return Search(rows, codes, min(dims, 64 // parts), warps, 3, slots=32)


def parts(wanted: int, tiles: int) -> int:
    """In how many parts separate programs search ``tiles`` tiles of codes, at least one, where ``wanted`` would fill the device."""
    return max(1, min(wanted, tiles // _LEAST_TILES, MOST_PARTS))


def exhaustive(k: int, d: int, device: Device) -> Tile:
    """The float64 search: rows x codes x dims of one step, all held in registers."""
    if device == INTERPRETER:
        return Tile(16, 128, min(_power(d), 32), 4, 1)
    dims = min(max(_LEAST_DIMS, _power(d)), 16)
    return Tile(4, min(_power(k), max(16, 1024 // dims)), dims, 4, 1)


def sample(d: int, device: Device) -> Tile:
    """A look at a few codes, all at once: codes x dims."""
    if device == INTERPRETER:
        return Tile(1, 256, min(_power(d), 256), 4, 1)
    return Tile(1, 256, min(_power(d), 16), 4, 1)


def merge(lanes: int, device: Device) -> Tile:
    """Rows whose lists of ``lanes`` places, one a part, are ranked in one step."""
    return Tile(128 if device == INTERPRETER else max(1, 2048 // (MOST_PARTS * lanes)), MOST_PARTS * lanes, 1, 4, 1)


def rows(d: int, device: Device) -> Tile:
    """Work that goes through rows of D elements once: rows x dims."""
    if device == INTERPRETER:
        return Tile(128, 1, min(_power(d), 256), 4, 1)
    dims = min(_power(d), 128)
    # At most a row a thread: the rotation keeps a dozen float64 values of each.
    return Tile(min(128, max(1, 2048 // dims)), 1, dims, 4, 1)


def segments(d: int, device: Device) -> Tile:
    """Sums over lists of rows: lists x members x dims of one step."""
    if device == INTERPRETER:
        return Tile(128, 8, min(_power(d), 256), 4, 1)
    dims = min(max(_LEAST_DIMS, _power(d)), 64)
    return Tile(max(1, 64 // dims), 32, dims, 4, 1)
