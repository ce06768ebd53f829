"""What the ranks of a process group share in one flat all-reduce, and which latents they draw for it."""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of ranks), asked anew at every call: a process group may be started after a quantizer was built."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sums of these tensors over all ranks, by one flat all-reduce in their common dtype. One rank: as they are."""
    if world()[1] == 1:
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    return tuple(part.view_as(tensor) for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors))


def draw_distinct(latents: Tensor, valid: Tensor, count: int) -> Tensor | None:
    """``count`` latents drawn at random from those of all ranks, the same on every rank; None where no rank has a valid one.

    latents: (N, D).  valid: (N,) bool, the rows that may be drawn.
    Returns (count, D), drawn without replacement; where there are fewer latents, each as often as any other, to within one.
    Draws from torch's default generator of the device, on the first rank; waits for the device. The shapes of what the ranks
    share do not depend on the data.
    """
    rank, ranks = world()
    numbers = torch.zeros(ranks, dtype=torch.int64, device=latents.device)
    numbers[rank] = valid.sum()
    (numbers,) = sum_over_ranks(numbers)
    ends = numbers.cumsum(0)
    total = int(ends[-1])
    if total == 0:
        return None
    drawn = torch.randperm(total, device=latents.device).repeat(-(-count // total))[:count]
    (drawn,) = sum_over_ranks(drawn * (rank == 0))
    mine = torch.searchsorted(ends, drawn, right=True) == rank
    rows = latents.new_zeros(count, latents.shape[1])
    rows[mine] = latents[valid][drawn[mine] - (ends - numbers)[rank]]
    return sum_over_ranks(rows)[0]


def draw_latents(latents: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """This rank's share of ``count`` latents drawn at random, with replacement, from all ranks; sum over ranks to get all.

    latents: (N, D).  valid: (N,) bool, the rows that may be drawn.
    Returns rows (count, D), zero where another rank draws, and drawn (count,), 1 where this rank drew a valid row, else 0
    (row i is drawn by rank i modulo the number of ranks; a rank without a valid row draws nothing).
    Draws from torch's default generator of the device; never synchronises with it.
    """
    rank, ranks = world()
    mine = torch.arange(count, device=latents.device) % ranks == rank
    if len(latents) == 0:
        return latents.new_zeros(count, latents.shape[1]), latents.new_zeros(count)
    number = valid.sum()
    positions = (torch.rand(count, device=latents.device, dtype=torch.float64) * number).long()
    rows = (~valid).argsort(stable=True)[positions.clamp(max=len(latents) - 1)]
    drawn = mine & (number > 0)
    return latents[rows].where(drawn[:, None], 0.0), drawn.to(latents.dtype)
