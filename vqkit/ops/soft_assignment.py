"""Softmax over all codes of every latent, in blocks of rows: what the batch gives each code, how undecided the latents are, draws."""

from typing import Literal

import torch
from torch import Tensor

from vqkit.ops.operator import check_codes, check_rows

Affinity = Literal["distance", "squared", "similarity"]
_AFFINITIES = ("distance", "squared", "similarity")

# Affinities of one block of rows: bounds the memory, whatever N and K.
_BLOCK = 1 << 20


def _prepared(latents: Tensor, codes: Tensor, valid: Tensor, affinity: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and table with zeros where nothing counts, and which codes (K,) are finite."""
    finite = codes.isfinite().all(-1)
    table, rows = codes.where(finite[:, None], 0.0), latents.where(valid[:, None], 0.0)
    if affinity == "similarity":
        return rows, table, finite
    # Distances do not depend on a common offset, their rounding does.
    centre = table.sum(0) / finite.sum().clamp(min=1)
    return (rows - centre).where(valid[:, None], 0.0), table - centre, finite


def _affinities(rows: Tensor, table: Tensor, finite: Tensor, affinity: str) -> Tensor:
    """(n, K); minus infinity for codes that are not finite."""
    if affinity == "similarity":
        found = rows @ table.T
    else:
        found = -torch.cdist(rows, table)
        found = -found.square() if affinity == "squared" else found
    return found.masked_fill_(~finite, -torch.inf)


def _step(codes: Tensor) -> int:
    return max(1, _BLOCK // codes.shape[0])


@torch.library.custom_op("vqkit::soft_assignment", mutates_args=())
def _soft_assignment(latents: Tensor, codes: Tensor, valid: Tensor, scale: float, affinity: str) -> tuple[Tensor, Tensor]:
    mass, entropy = codes.new_zeros(codes.shape[0], dtype=torch.float64), codes.new_zeros((), dtype=torch.float64)
    with torch.autocast(latents.device.type, enabled=False):
        rows, table, finite = _prepared(latents, codes, valid, affinity)
        for block, counted in zip(rows.split(_step(codes)), valid.split(_step(codes))):
            share = torch.softmax(scale * _affinities(block, table, finite, affinity), -1).masked_fill_(~counted[:, None], 0.0)
            mass += share.sum(0)
            entropy += torch.special.entr(share).sum()
    return mass.to(codes.dtype), entropy.to(codes.dtype)


@_soft_assignment.register_fake
def _(latents, codes, valid, scale, affinity):
    return codes.new_empty(codes.shape[0]), codes.new_empty(())


@torch.library.custom_op("vqkit::soft_assignment_backward", mutates_args=())
def _soft_assignment_backward(
    latents: Tensor, codes: Tensor, valid: Tensor, grad_mass: Tensor, grad_entropy: Tensor, scale: float, affinity: str
) -> tuple[Tensor, Tensor]:
    grad_latents, grad_codes = torch.zeros_like(latents), torch.zeros_like(codes)
    with torch.autocast(latents.device.type, enabled=False):
        rows, table, finite = _prepared(latents, codes, valid, affinity)
        step = _step(codes)
        for block, counted, into in zip(rows.split(step), valid.split(step), grad_latents.split(step)):
            affinities = _affinities(block, table, finite, affinity)
            share = torch.softmax(scale * affinities, -1).masked_fill_(~counted[:, None], 0.0)
            pull = share * grad_mass + grad_entropy * torch.special.entr(share)
            pull -= share * pull.sum(-1, keepdim=True)
            pull *= scale
            if affinity == "similarity":
                into.copy_(pull @ table)
                grad_codes += pull.T @ block
                continue
            # d -|x - c| / dx = (c - x) / |x - c|, zero where x = c;  d -|x - c|^2 / dx = 2 (c - x).
            pull = pull * 2 if affinity == "squared" else torch.where(affinities < 0, pull / -affinities, 0.0)
            into.copy_(pull @ table - pull.sum(-1, keepdim=True) * block)
            grad_codes += pull.T @ block - pull.sum(0)[:, None] * table
    return grad_latents, grad_codes


@_soft_assignment_backward.register_fake
def _(latents, codes, valid, grad_mass, grad_entropy, scale, affinity):
    return torch.empty_like(latents), torch.empty_like(codes)


def _save(ctx, inputs, output):
    latents, codes, valid, ctx.scale, ctx.affinity = inputs
    ctx.save_for_backward(latents, codes, valid)


def _backward(ctx, grad_mass, grad_entropy):
    grads = _soft_assignment_backward(*ctx.saved_tensors, grad_mass, grad_entropy, ctx.scale, ctx.affinity)
    return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad)), None, None, None


_soft_assignment.register_autograd(_backward, setup_context=_save)


def soft_assignment(
    latents: Tensor, codes: Tensor, mask: Tensor, *, scale: float, affinity: Affinity = "distance"
) -> tuple[Tensor, Tensor]:
    """Sums over the latents of p and of its entropy, with p[n] = softmax over k of scale * affinity(x_n, c_k).

    Args:
        latents: (N, D), float32 or float64.
        codes: (K, D), same dtype and device. A code that is not finite gets no share.
        mask: (N,), bool; False leaves a row out.
        scale: the inverse of a temperature.
        affinity: "distance": -|x - c|;  "squared": -|x - c|^2;  "similarity": x . c, of vectors as they are given.

    Returns:
        mass: (K,), the sum over n of p[n, k].  entropy: (), the sum over n of the entropy of p[n], in nats.
        Both of the dtype of ``codes``, with gradients to ``latents`` and ``codes``.

    All N x K affinities are computed, in the backward pass again, but never held: a block of rows at a time.

    Raises:
        ValueError, TypeError: types, shapes, dtypes or an affinity that do not fit.
    """
    _check(latents, codes, mask, affinity)
    return _soft_assignment(latents, codes, mask, float(scale), affinity)


# A compiled graph that runs it twice, or once for two calls, would draw something else.
@torch.library.custom_op("vqkit::sample_codes", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _sample_codes(latents: Tensor, codes: Tensor, valid: Tensor, scale: float, affinity: str) -> Tensor:
    indices = torch.full((latents.shape[0],), -1, dtype=torch.int64, device=latents.device)
    with torch.autocast(latents.device.type, enabled=False):
        rows, table, finite = _prepared(latents, codes, valid, affinity)
        for block, into in zip(rows.split(_step(codes)), indices.split(_step(codes))):
            scores = scale * _affinities(block, table, finite, affinity)
            # -log of an exponential draw is a Gumbel draw.
            into.copy_(scores.sub_(torch.empty_like(scores).exponential_().log_()).argmax(-1))
    return indices.where(valid, -1)


@_sample_codes.register_fake
def _(latents, codes, valid, scale, affinity):
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


def sample_codes(latents: Tensor, codes: Tensor, mask: Tensor, *, scale: float, affinity: Affinity = "distance") -> Tensor:
    """One code of every latent, drawn with the probabilities of ``soft_assignment``: (N,) int64, -1 where the mask is False.

    Arguments and errors are those of ``soft_assignment``. Draws from torch's default generator of the device; the same seed gives
    the same draws. No gradient. Memory as there.

    Source: the Gumbel-max trick: Gumbel 1954; Maddison et al. 2014 (arXiv 1411.0030), section 2.
    """
    _check(latents, codes, mask, affinity)
    return _sample_codes(latents.detach(), codes.detach(), mask, float(scale), affinity)


def _check(latents: Tensor, codes: Tensor, mask: Tensor, affinity: str) -> None:
    check_codes(codes)
    check_rows("latents", latents, like=("codes", codes))
    if codes.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"codes: expected float32 or float64, got {codes.dtype}")
    if latents.ndim != 2:
        raise ValueError(f"latents: expected (N, D), got {tuple(latents.shape)}")
    if mask.dtype != torch.bool or mask.shape != latents.shape[:1]:
        raise ValueError(f"mask: expected bool of shape {tuple(latents.shape[:1])}, got {mask.dtype} {tuple(mask.shape)}")
    if affinity not in _AFFINITIES:
        raise ValueError(f"affinity: expected one of {', '.join(map(repr, _AFFINITIES))}, got {affinity!r}")
