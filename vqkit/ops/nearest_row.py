"""The nearest latent of every code: the nearest-code search with the roles of latents and codes exchanged."""

import torch
from torch import Tensor

from vqkit.ops.nearest import Metric, nearest_code
from vqkit.ops.operator import check_codes, check_rows


def nearest_row(latents: Tensor, codes: Tensor, *, mask: Tensor | None = None, metric: Metric = "l2", backend: str | None = None) -> Tensor:
    """The nearest latent of every code, such as the "closest" anchors of CVQ: the argmin over N, not K, of the distances.

    rows[k] = the n with the smallest |x_n - c_k|^2, which is the largest c_k . x_n - |x_n|^2 / 2.

    Args:
        latents: (..., D), float32, float16, bfloat16 or float64; the N rows are numbered as ``latents.reshape(-1, D)``.
        codes: (K, D), same dtype and device.
        mask: (...), bool; False leaves a row out. It costs one copy of the latents; the compute of N rows, not of those left.
        metric: "l2", or "cosine" for the largest x . c / (|x| |c|); a zero latent or zero code has similarity 0 with all.
        backend: "triton", "cuda", "native" or "reference"; None chooses.

    Returns:
        (K,), int64, exact and deterministic on every backend as in ``nearest_codes``; ties go to the lowest row. A row that is
        masked or holds NaN or infinity is never chosen. -1 for a code that holds NaN or infinity, and for every code where no
        row is left, N = 0 among it. No gradient: both inputs are detached. The memory used is O(N + K), never O(N K).

    Raises:
        ValueError, TypeError: types, shapes, dtypes, devices, mask or metric that do not fit.
        BackendError: the requested backend cannot compute this.

    Source: the anchors "closest" of CVQ-VAE (arXiv 2307.15139), whose code sorts all N x K distances for them.
    """
    check_codes(codes)
    check_rows("latents", latents, like=("codes", codes))
    if mask is not None:
        _check_mask(mask, latents)
    rows, targets = latents.detach(), codes.detach()
    if mask is not None:
        # A row of NaN is one that no backend chooses. In one contiguous copy, whatever the strides were.
        rows = rows.clone(memory_format=torch.contiguous_format).masked_fill_(~mask[..., None], torch.nan)
    rows = rows.reshape(-1, rows.shape[-1])
    if rows.shape[0] == 0:
        # With one row, of NaN, to look at: what does not fit is found all the same.
        rows = rows.new_full((1, rows.shape[1]), torch.nan)
    chosen = nearest_code(targets, rows, metric=metric, backend=backend)
    # Where nothing can be chosen the search still names a row.
    sound = rows[chosen].isfinite().all(-1) & targets.isfinite().all(-1)
    return chosen.where(sound, -1)


def _check_mask(mask: Tensor, latents: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.shape != latents.shape[:-1]:
        raise ValueError(f"mask: expected shape {tuple(latents.shape[:-1])} as latents without D, got {tuple(mask.shape)}")
    if mask.device != latents.device:
        raise ValueError(f"mask: expected device {latents.device} as in latents, got {mask.device}")
