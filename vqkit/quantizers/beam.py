"""Beam search over the stages of a residual quantizer: not the nearest code of each stage, but a sum of codes that is near."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.ops import nearest_codes
from vqkit.ops.nearest import MAX_K
from vqkit.quantizers.layout import project_rows
from vqkit.quantizers.quantizer import Quantizer


def takes_part_in_beam_search(stage: nn.Module) -> bool:
    """Whether a stage can list the codes nearest to a latent, as a ``Quantizer``, or by a method ``candidates``, and take the chosen ones."""
    lists = isinstance(stage, Quantizer) or hasattr(stage, "candidates")
    return lists and "indices" in inspect.signature(stage.forward).parameters


@torch.no_grad()
def beam_search(
    stages: Sequence[nn.Module],
    rows: Tensor,
    beam_size: int,
    weights: Sequence[float] | None,
    starts: Tensor | None,
    of_directions: bool = False,
) -> Tensor:
    """The index of each stage, (N, Q), by the best of ``beam_size`` partial sums.

    rows: (N, D) float32 or float64, finite.
    weights: a number a stage: sums are ranked by the weighted sum of their errors so far; None: by their last error.
    starts: (N,) bool, for codebooks that start from the first batch they see: which rows count; None: nothing starts.
    of_directions: the error of a stage is that of its residual's direction, for codes of unit length.
    Of equal sums the first comes first. Holds O(N beam_size (D + Q)) numbers: one of the candidates of a sum at a time is decoded.
    """
    number, dim = rows.shape
    totals, scores = rows.new_zeros(number, 1, dim), rows.new_zeros(number, 1)
    path = torch.zeros(number, 1, 0, dtype=torch.int64, device=rows.device)
    for place, stage in enumerate(stages):
        residual = rows[:, None] - totals
        options = {"condition": totals.flatten(0, 1)} if getattr(stage, "conditioned", False) else {}
        if starts is not None and isinstance(stage, Quantizer):
            latents, valid = _latents(stage, residual[:, 0], starts)
            stage.codebook.prepare(latents, valid)
        count = min(beam_size, MAX_K, stage.codebook_sizes[0])
        candidates = _candidates(stage, residual.flatten(0, 1), count, options)
        target = normalize(residual, dim=-1) if of_directions else residual
        errors = torch.stack(
            [(target - _decoded(stage, column, residual, options)).square().sum(-1) for column in candidates.unbind(-1)], -1
        )
        ranked = errors if weights is None else scores[..., None] + weights[place] * errors
        width = 1 if place == len(stages) - 1 else beam_size
        scores, chosen = (part[:, :width] for part in ranked.flatten(1).sort(dim=-1, stable=True))
        parents = (chosen // count)[..., None]
        indices = candidates.view(number, errors.shape[1] * count).gather(1, chosen)
        totals = totals.gather(1, parents.expand(-1, -1, dim))
        if options:
            options = {"condition": totals.flatten(0, 1)}
        totals = totals + _decoded(stage, indices.flatten(), totals, options)
        path = torch.cat([path.gather(1, parents.expand(-1, -1, place)), indices[..., None]], -1)
    return path[:, 0]


def _latents(stage: Quantizer, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared with the codes of a stage, (..., codebook_dim), zero where not valid, and which rows are valid."""
    latents, valid = project_rows(stage.project_in, _given(stage, x), valid)
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
    return normalize(latents, dim=-1) if stage.metric == "cosine" else latents, valid


def _candidates(stage: nn.Module, rows: Tensor, count: int, options: dict[str, Tensor]) -> Tensor:
    if not isinstance(stage, Quantizer):
        return stage.candidates(rows, count, **options)
    latents, _ = _latents(stage, rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device))
    return nearest_codes(latents, stage.codes.to(latents.dtype), count, metric=stage.metric)[1]


def _decoded(stage: nn.Module, indices: Tensor, like: Tensor, options: dict[str, Tensor]) -> Tensor:
    dtype = _given(stage, like[:0]).dtype
    return stage.decode(indices.reshape(-1), dtype=dtype, **options).to(like.dtype).view(like.shape)


def _given(stage: nn.Module, rows: Tensor) -> Tensor:
    """Rows in the dtype of a stage's own layer, if it has one: a model that is cast to half precision takes them only in that."""
    layer = getattr(stage, "project_in", None)
    return rows.to(layer.weight.dtype) if isinstance(layer, nn.Linear) else rows
