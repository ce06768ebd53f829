"""Per-code sums and counts: a stable sort of the indices, then sums over the lists of rows of each code."""

import torch
from torch import Tensor

from vqkit.kernels import probe
from vqkit.kernels.segments import segment_sums


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors cannot be computed on; None when they can."""
    return probe.unavailable(*tensors)


def rows_by_code(indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """The positions of ``indices`` (N,) ordered by code, then by position, and where each code begins: (N,), (K + 1,) int64.

    Masked positions (-1) come first and belong to no code.
    """
    # Half the passes of a radix sort of int64.
    ordered, positions = torch.sort(indices.to(torch.int32), stable=True)
    bounds = torch.arange(codebook_size + 1, dtype=torch.int32, device=indices.device)
    return positions, torch.searchsorted(ordered, bounds)


def code_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """sums (K, D): the sum of the latents of each code, float32 or float64; counts (K,) int64. Index -1 is skipped."""
    positions, offsets = rows_by_code(indices, codebook_size)
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return segment_sums(latents, offsets, positions, None, dtype), offsets.diff()
