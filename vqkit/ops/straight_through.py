"""Gather, straight-through or rotation gradient, and the commitment and codebook losses, as one operator."""

from typing import Literal

import torch
from torch import Tensor

from vqkit.backend import requested
from vqkit.ops.operator import Operator, check_codes, check_rows
from vqkit.ops.statistics import check_indices, check_range, check_selection, code_statistics_reference

Gradient = Literal["straight_through", "rotation"]


def _quantize(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    accumulate = torch.promote_types(latents.dtype, torch.float32)
    valid = indices[:, :1] >= 0
    chosen = codes[indices.clamp(min=0)].to(accumulate).mean(1)
    return chosen.where(valid, 0.0), latents.to(accumulate).where(valid, 0.0), (valid.sum() * latents.shape[1]).clamp(min=1).to(accumulate)


def _reference(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    quantized, rows, elements = _quantize(latents, codes, indices)
    error = (rows.double() - quantized.double()).square().sum() / elements.double()
    return quantized.to(latents.dtype), error.to(rows.dtype)


def _reference_backward(
    latents: Tensor,
    codes: Tensor,
    indices: Tensor,
    grad_quantized: Tensor,
    grad_commitment: Tensor,
    grad_codebook: Tensor,
    rotation: bool,
    codes_gradient: bool,
) -> tuple[Tensor, Tensor]:
    quantized, rows, elements = _quantize(latents, codes, indices)
    residual = (rows - quantized) * (2 / elements)
    passed = grad_quantized.to(rows.dtype).where(indices[:, :1] >= 0, 0.0)
    passed = _rotate_back(rows, quantized, passed) if rotation else passed
    grad_latents = (passed + residual * grad_commitment).to(latents.dtype)
    if not codes_gradient:
        return grad_latents, torch.zeros_like(codes)
    pull = (-residual * grad_codebook / indices.shape[1]).repeat_interleave(indices.shape[1], 0)
    grad_codes, _ = code_statistics_reference(pull, indices.reshape(-1), codes.shape[0])
    return grad_latents, grad_codes.to(codes.dtype)


def _rotate_back(latents: Tensor, quantized: Tensor, gradient: Tensor) -> Tensor:
    """R^T g of the rotation trick, row by row, in float64; g itself where no rotation is defined."""
    x, q, g = (t.double() for t in (latents, quantized, gradient))
    long, short = x.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    e, q = x / long, q / short
    square = (e + q).square().sum(-1, keepdim=True)
    turned = g - 2 * (e + q) * ((e + q) * g).sum(-1, keepdim=True) / square + 2 * e * (q * g).sum(-1, keepdim=True)
    # Opposite vectors leave rounding in the square, not zero.
    defined = (long > 0) & (short > 0) & (square > 1e-24)
    return (turned * (short / long)).where(defined, g).to(gradient.dtype)


def _check_mask(indices: Tensor) -> None:
    """Raise IndexError, on the CPU, for a -1 that follows an index: only in the first place does it mask the latent."""
    if indices.shape[1] == 1 or indices.device.type != "cpu":
        return
    stray = ((indices < 0) & (indices[:, :1] >= 0)).nonzero()
    if stray.shape[0]:
        row, place = stray[0].tolist()
        raise IndexError(f"indices: expected -1 in the first place only, got -1 in place {place} of latent {row}")


OPERATOR = Operator("straight_through", straight_through=_reference, straight_through_backward=_reference_backward)


@torch.library.custom_op("vqkit::straight_through", mutates_args=())
def _straight_through(
    latents: Tensor, codes: Tensor, indices: Tensor, rotation: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    check_range(indices, codes.shape[0], "K")
    _check_mask(indices)
    arguments = (latents.contiguous(), codes.contiguous(), indices.contiguous())
    quantized, error = OPERATOR.compute("straight_through", *arguments, backend=backend)
    return quantized, error, error.clone()


@_straight_through.register_fake
def _(latents, codes, indices, rotation, backend):
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return torch.empty_like(latents, memory_format=torch.contiguous_format), latents.new_empty((), dtype=dtype), latents.new_empty((), dtype=dtype)


@torch.library.custom_op("vqkit::straight_through_backward", mutates_args=())
def _straight_through_backward(
    latents: Tensor,
    codes: Tensor,
    indices: Tensor,
    grad_quantized: Tensor,
    grad_commitment: Tensor,
    grad_codebook: Tensor,
    rotation: bool,
    codes_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    arguments = (latents.contiguous(), codes.contiguous(), indices.contiguous(), grad_quantized.contiguous())
    options = (grad_commitment, grad_codebook, rotation, codes_gradient)
    return OPERATOR.compute("straight_through_backward", *arguments, *options, backend=backend)


@_straight_through_backward.register_fake
def _(latents, codes, indices, grad_quantized, grad_commitment, grad_codebook, rotation, codes_gradient, backend):
    contiguous = torch.contiguous_format
    return torch.empty_like(latents, memory_format=contiguous), torch.empty_like(codes, memory_format=contiguous)


def _save(ctx, inputs, output):
    latents, codes, indices, ctx.rotation, ctx.backend = inputs
    ctx.save_for_backward(latents, codes, indices)


def _backward(ctx, grad_quantized, grad_commitment, grad_codebook):
    codes_gradient = ctx.needs_input_grad[1]
    grad_latents, grad_codes = _straight_through_backward(
        *ctx.saved_tensors, grad_quantized, grad_commitment, grad_codebook, ctx.rotation, codes_gradient, ctx.backend
    )
    return grad_latents, grad_codes if codes_gradient else None, None, None, None


_straight_through.register_autograd(_backward, setup_context=_save)


def straight_through(
    latents: Tensor, codes: Tensor, indices: Tensor, *, gradient: Gradient = "straight_through", backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen codes with a gradient to the latents, and the two losses of a vector quantizer.

    quantized = mean over t of codes[indices[..., t]];  commitment = mean (x - sg q)^2;  codebook = mean (sg x - q)^2.

    Args:
        latents: (..., D), floating point.
        codes: (K, D), same dtype and device.
        indices: (...), or (..., T) to average T codes a latent; int64. -1 in the first place masks a latent: its output is
            zero and it counts in neither loss.
        gradient: how d quantized / d latents is defined. "straight_through": the identity. "rotation": the rotation and
            scaling that turns x into q, held constant (identity where x, q or x/|x| + q/|q| is zero).
        backend: as in ``nearest_codes``. The backward pass uses what was asked for in the forward pass.

    Returns:
        quantized: (..., D), dtype of ``latents``; gradient to ``latents`` only.
        commitment: (), mean over the unmasked elements; gradient to ``latents`` only. 0 when all are masked.
        codebook: (), the same value; gradient to ``codes`` only, summed in a fixed order.
        The losses are float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: types, shapes, dtypes or devices that do not fit. IndexError: an index out of range, or -1 after
        the first place (on the CPU).

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; rotation: Fifty et al. 2024 (arXiv 2410.06424), section 4.
    """
    check_codes(codes)
    check_rows("latents", latents, like=("codes", codes))
    check_indices(indices)
    several = indices.ndim == latents.ndim
    check_selection(indices, latents, (*latents.shape[:-1], indices.shape[-1]) if several else latents.shape[:-1])
    if several and indices.shape[-1] == 0:
        raise ValueError("indices: expected at least one code a latent, got a last dimension of 0")
    if gradient not in ("straight_through", "rotation"):
        raise ValueError(f"gradient: expected 'straight_through' or 'rotation', got {gradient!r}")
    rows = latents.reshape(-1, latents.shape[-1])
    columns = indices.reshape(-1, indices.shape[-1] if several else 1)
    quantized, commitment, codebook = _straight_through(rows, codes, columns, gradient == "rotation", requested(backend) or "")
    return quantized.view(latents.shape), commitment, codebook
