"""Tile sizes: plain functions of the problem and the device, so that a shape always compiles the same kernel.

``device`` is a compute capability such as (9, 0), or "interpreter", where a step costs milliseconds whatever its size and
tiles are therefore large. No size follows N beyond one threshold: another batch size must not compile another kernel; ``parts``
does, but is an argument of the kernels.
"""

from typing import NamedTuple

import torch

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


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def search(n: int, k: int, d: int, dtype: torch.dtype, device: Device, keep: int) -> Tile:
    """The tensor-core search: rows x codes x dims of one dot; ``keep`` scores a row are kept."""
    if device == INTERPRETER:
        return Tile(128, 256, min(max(16, _power(d)), 128), 4, 1)
    # A dot needs 16 of everything.
    dims = min(max(16, _power(d)), 64)
    codes = min(max(16, _power(k)), 128 if keep <= 2 else 64)
    if dtype in (torch.float16, torch.bfloat16):
        rows = 64 if n < _FEW_ROWS or keep > 2 else 128
        return Tile(rows, codes, dims, 8 if rows * codes >= 128 * 128 else 4, 3)
    # Splitting fp32 in halves doubles what a tile keeps in registers.
    return Tile(64, codes, min(dims, 32), 8 if codes == 128 else 4, 2)


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
