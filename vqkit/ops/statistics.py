"""Codebook statistics: per-code sums and counts of the latents that chose each code, and their exponential moving average."""

import torch
from torch import Tensor

from vqkit.ops.operator import Operator, check_rows, check_size


def code_statistics_reference(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Stable sort by code, then the sum of every segment."""
    # Masked rows (index -1) form a first segment of their own, which is dropped.
    segments = indices + 1
    counts = torch.zeros(codebook_size + 1, dtype=torch.int64, device=indices.device)
    counts.scatter_add_(0, segments, torch.ones_like(segments))
    rows = latents[segments.argsort(stable=True)].double()
    sums = torch.segment_reduce(rows, "sum", lengths=counts, unsafe=True, initial=0.0)
    return sums[1:].to(torch.promote_types(latents.dtype, torch.float32), copy=True), counts[1:].clone()


OPERATOR = Operator("statistics", code_statistics=code_statistics_reference)


@torch.library.custom_op("vqkit::code_statistics", mutates_args=())
def _code_statistics(latents: Tensor, indices: Tensor, codebook_size: int, backend: str) -> tuple[Tensor, Tensor]:
    check_range(indices, codebook_size, "codebook_size")
    if latents.ndim == 2:
        return OPERATOR.compute("code_statistics", latents.contiguous(), indices.contiguous(), codebook_size, backend=backend)
    # All heads' codes in one table: an index out of range must not reach the next head's.
    heads, dim = latents.shape[0], latents.shape[-1]
    first = torch.arange(heads, device=indices.device)[:, None] * codebook_size
    numbered = torch.where((indices >= 0) & (indices < codebook_size), indices + first, -1)
    rows = latents.reshape(-1, dim).contiguous()
    sums, counts = OPERATOR.compute("code_statistics", rows, numbered.reshape(-1), heads * codebook_size, backend=backend)
    return sums.view(heads, codebook_size, dim), counts.view(heads, codebook_size)


@_code_statistics.register_fake
def _(latents, indices, codebook_size, backend):
    dtype, shape = torch.promote_types(latents.dtype, torch.float32), (*latents.shape[:-2], codebook_size)
    return latents.new_empty((*shape, latents.shape[-1]), dtype=dtype), latents.new_empty(shape, dtype=torch.int64)


def check_indices(indices: Tensor) -> None:
    """Raise unless ``indices`` is an int64 tensor."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        raise TypeError(f"indices: expected an int64 tensor, got {getattr(indices, 'dtype', type(indices).__name__)}")


def check_selection(indices: Tensor, latents: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``indices`` has this shape and the device of ``latents``."""
    if tuple(indices.shape) != tuple(shape):
        raise ValueError(f"indices: expected shape {tuple(shape)}, got {tuple(indices.shape)}")
    if indices.device != latents.device:
        raise ValueError(f"indices: expected device {latents.device} as in latents, got {indices.device}")


def check_range(indices: Tensor, size: int, name: str) -> None:
    """Raise IndexError unless -1 <= indices < size, where looking costs no synchronisation and no graph break."""
    if indices.device.type != "cpu" or indices.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if not -1 <= low <= high < size:
        raise IndexError(f"indices: expected -1 <= index < {name} = {size}, got {low}..{high}")


def code_statistics(
    latents: Tensor, indices: Tensor, codebook_size: int, *, per_head: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Per-code sums and counts of the latents that chose each code.

    sums[k] = sum of latents[n] over the n with indices[n] == k;  counts[k] = how many they are.

    Args:
        latents: (..., D), floating point.
        indices: (...), int64 in -1..codebook_size-1; -1 leaves a row out.
        codebook_size: K >= 1.
        per_head: the first dimension is of H >= 1 heads, with a codebook each: latents (H, ..., D), indices (H, ...).
        backend: as in ``nearest_codes``.

    Returns:
        sums: (K, D), float32 (float64 for float64 latents), zero for a code that nobody chose.
        counts: (K,), int64.
        With ``per_head`` (H, K, D) and (H, K).
        Neither has a gradient. The order of summation is fixed: two runs give the same bits, on any number of threads.

    Raises:
        ValueError, TypeError: types, shapes, dtypes or devices that do not fit. IndexError: an index out of range (checked where
        it costs no synchronisation: on the CPU).
    """
    check_rows("latents", latents)
    check_indices(indices)
    check_selection(indices, latents, latents.shape[:-1])
    check_size("codebook_size", codebook_size)
    if per_head and (latents.ndim < 2 or latents.shape[0] == 0):
        raise ValueError(f"latents: expected shape (H, ..., D) with H >= 1, got {tuple(latents.shape)}")
    shape = (*latents.shape[: int(per_head)], -1)
    return _code_statistics(latents.detach().reshape(*shape, latents.shape[-1]), indices.reshape(shape), codebook_size, backend or "")


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code was chosen: ``indices`` of any shape, int64, -1 left out -> (K,) int64. Deterministic.

    The errors are those of ``code_statistics``.
    """
    check_indices(indices)
    check_size("codebook_size", codebook_size)
    check_range(indices, codebook_size, "codebook_size")
    counts = torch.zeros(codebook_size + 1, dtype=torch.int64, device=indices.device)
    chosen = indices.reshape(-1) + 1
    return counts.scatter_add(0, chosen, torch.ones_like(chosen))[1:]


def ema_update(average: Tensor, batch: Tensor, decay: float) -> None:
    """average <- decay * average + (1 - decay) * batch, in place, in the dtype of ``average``.

    average: any shape, floating point. batch: the same shape and device, of any dtype.

    Raises ValueError or TypeError for others.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1, equations 6 and 7.
    """
    for name, tensor in (("average", average), ("batch", batch)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not average.is_floating_point():
        raise TypeError(f"average: expected a floating-point tensor, got {average.dtype}")
    if batch.shape != average.shape:
        raise ValueError(f"batch: expected shape {tuple(average.shape)} as in average, got {tuple(batch.shape)}")
    if batch.device != average.device:
        raise ValueError(f"batch: expected device {average.device} as in average, got {batch.device}")
    average.lerp_(batch.to(average.dtype), 1 - decay)
