"""From the layout of an input to its rows: what fits, which rows count, and a linear layer that sees only those."""

import torch
from torch import Tensor, nn


def feature_rows(x: Tensor, mask: Tensor | None, dim: int, channel_first: bool) -> tuple[Tensor, Tensor]:
    """x with its features last, (..., D), and which of these rows are finite and in the mask, (...) bool.

    x: (..., D), or (B, D, *spatial) with channel_first; floating point.  mask: bool, shape of ``x`` without D, or None; or int64 (B,), of
    sequences (B, N, D) or (B, D, N) the lengths: of sample b the first mask[b] positions.
    Raises ValueError for an ``x`` or ``mask`` that does not fit.
    """
    rows = x.movedim(1, -1) if channel_first and x.ndim > 1 else x
    if not x.is_floating_point() or x.ndim < 1 + channel_first or rows.shape[-1] != dim:
        where = "(B, D, *spatial)" if channel_first else "(..., D)"
        raise ValueError(f"x: expected floating point {where} with D = {dim}, got {x.dtype} {tuple(x.shape)}")
    if mask is not None and mask.dtype == torch.int64 and rows.ndim == 3 and mask.shape == rows.shape[:1]:
        mask = torch.arange(rows.shape[1], device=mask.device) < mask[:, None]
    if mask is not None and (mask.dtype != torch.bool or mask.shape != rows.shape[:-1]):
        raise ValueError(f"mask: expected bool of shape {tuple(rows.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
    valid = rows.detach().isfinite().all(-1)
    return rows, valid if mask is None else valid & mask


def project_rows(layer: nn.Module, rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """layer(rows), zero where not valid, and which rows are valid after it; ``nn.Identity`` leaves the values as they are.

    rows: (..., D).  valid: (...) bool. A row that is left out reaches neither the layer's weights nor, by gradient, ``rows``.
    Raises ValueError for rows of another dtype than ``layer.weight``, outside autocast.
    """
    # Not even a zero gradient times NaN may reach the weights.
    rows = rows.where(valid[..., None], 0.0)
    if isinstance(layer, nn.Identity):
        return rows, valid
    if rows.dtype != layer.weight.dtype and not torch.is_autocast_enabled(rows.device.type):
        raise ValueError(f"x: expected {layer.weight.dtype} as the layer before the codes, or autocast, got {rows.dtype}")
    rows = layer(rows)
    valid = valid & rows.detach().isfinite().all(-1)
    return rows.where(valid[..., None], 0.0), valid
