"""The straight-through step in one pass each way.

Forward: gather (and average) the selected codes, write the quantized rows and sum the squared error: 2 N D elements and the
codes. Backward: pass the gradient through, straight or rotated, add the commitment loss's, and leave q - x of every row for
the sum over the rows of each code, which is the codebook loss's gradient: 3 N D elements, and 2 N D in float32 where the
codes want a gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import probe, tile
from vqkit.kernels.segments import segment_sums
from vqkit.kernels.statistics import rows_by_code


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors cannot be computed on; None when they can."""
    return probe.unavailable(*tensors)


@triton.jit
def _load(pointer, mask, COMPUTE: tl.constexpr):
    """Load in COMPUTE, by way of float32 where narrower: the interpreter widens bfloat16 to nothing else."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(COMPUTE)


@triton.jit
def _quantized(
    codes_ptr, indices_ptr, codebook_size, rows, dims, mask, D: tl.constexpr, T: tl.constexpr, COMPUTE: tl.constexpr
):
    """The mean of each row's T codes, a chunk of D (ROWS, DIMS); an index outside the table reads nothing and counts as 0."""
    total = tl.zeros(mask.shape, dtype=COMPUTE)
    for t in range(T):
        index = tl.load(indices_ptr + rows * T + t, mask=rows >= 0, other=0)
        inside = (index >= 0) & (index < codebook_size)
        total += _load(codes_ptr + index[:, None] * D + dims[None, :], mask & inside[:, None], COMPUTE)
    return total / T


@triton.jit(do_not_specialize=["n", "codebook_size"])
def _forward_kernel(
    latents_ptr, codes_ptr, indices_ptr, quantized_ptr, errors_ptr, n, codebook_size,
    D: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Quantized rows, and each program's sum of squared errors."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    chosen = live & (tl.load(indices_ptr + rows * T, mask=live, other=-1) >= 0)
    squares = tl.zeros((ROWS,), dtype=tl.float64)
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        inside = (dims < D)[None, :]
        mask = chosen[:, None] & inside
        quantized = _quantized(codes_ptr, indices_ptr, codebook_size, tl.where(chosen, rows, -1), dims, mask, D, T, COMPUTE)
        offsets = rows[:, None] * D + dims[None, :]
        residual = _load(latents_ptr + offsets, mask, COMPUTE) - quantized
        squares += tl.sum(residual * residual, axis=1).to(tl.float64)
        tl.store(quantized_ptr + offsets, quantized, mask=live[:, None] & inside)
    tl.store(errors_ptr + tl.program_id(0), tl.sum(squares, axis=0))


@triton.jit
def _rotation(
    latents_ptr, codes_ptr, indices_ptr, gradients_ptr, codebook_size, rows, chosen,
    D: tl.constexpr, T: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Coefficients (gain, along_x, along_q) of each row, all (ROWS,) float64, with R^T g = gain g + along_x x + along_q q.

    R = (|q| / |x|) (I - 2 w w^T + 2 q^ e^T), e = x / |x|, q^ = q / |q|, w = (e + q^) / |e + q^|, hence
    R^T g = (|q| / |x|) (g - 2 w (w . g) + 2 e (q^ . g)). Where x, q or e + q^ is zero the gradient passes straight.
    """
    zero = tl.where(chosen, 0.0, 0.0).to(tl.float64)
    xx, qq, xg, qg, sum_squares = zero, zero, zero, zero, zero
    picked = tl.where(chosen, rows, -1)
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        mask = chosen[:, None] & (dims < D)[None, :]
        x = _load(latents_ptr + rows[:, None] * D + dims[None, :], mask, tl.float64)
        g = _load(gradients_ptr + rows[:, None] * D + dims[None, :], mask, tl.float64)
        q = _quantized(codes_ptr, indices_ptr, codebook_size, picked, dims, mask, D, T, tl.float64)
        xx += tl.sum(x * x, axis=1)
        qq += tl.sum(q * q, axis=1)
        xg += tl.sum(x * g, axis=1)
        qg += tl.sum(q * g, axis=1)
    turns = (xx > 0) & (qq > 0)
    x_norm = tl.sqrt(tl.where(turns, xx, 1.0))
    q_norm = tl.sqrt(tl.where(turns, qq, 1.0))
    # |e + q^|^2 by itself: 2 + 2 e . q^ has no bits left where they are nearly opposite.
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        mask = chosen[:, None] & (dims < D)[None, :]
        x = _load(latents_ptr + rows[:, None] * D + dims[None, :], mask, tl.float64)
        q = _quantized(codes_ptr, indices_ptr, codebook_size, picked, dims, mask, D, T, tl.float64)
        both = x / x_norm[:, None] + q / q_norm[:, None]
        sum_squares += tl.sum(both * both, axis=1)
    # Opposite vectors leave rounding here, not zero.
    turns = turns & (sum_squares > 1e-24)
    reflected = 2 * (xg / x_norm + qg / q_norm) / tl.where(turns, sum_squares, 1.0)
    gain = q_norm / x_norm
    along_x = gain * (2 * qg / q_norm - reflected) / x_norm
    along_q = -gain * reflected / q_norm
    return tl.where(turns, gain, 1.0), tl.where(turns, along_x, 0.0), tl.where(turns, along_q, 0.0)


@triton.jit(do_not_specialize=["n", "codebook_size"])
def _backward_kernel(
    latents_ptr, codes_ptr, indices_ptr, gradients_ptr, commitment_ptr, grad_latents_ptr, residuals_ptr, n, codebook_size,
    D: tl.constexpr, T: tl.constexpr, ROTATION: tl.constexpr, RESIDUALS: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The gradient of the latents; and with RESIDUALS q - x of every row, for the gradient of the codes."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < n
    chosen = live & (tl.load(indices_ptr + rows * T, mask=live, other=-1) >= 0)
    commitment = tl.load(commitment_ptr)
    if ROTATION:
        gain, along_x, along_q = _rotation(
            latents_ptr, codes_ptr, indices_ptr, gradients_ptr, codebook_size, rows, chosen, D, T, DIMS
        )
    for start in range(0, D, DIMS):
        dims = start + tl.arange(0, DIMS)
        inside = (dims < D)[None, :]
        mask = chosen[:, None] & inside
        offsets = rows[:, None] * D + dims[None, :]
        quantized = _quantized(codes_ptr, indices_ptr, codebook_size, tl.where(chosen, rows, -1), dims, mask, D, T, COMPUTE)
        latents = _load(latents_ptr + offsets, mask, COMPUTE)
        gradient = _load(gradients_ptr + offsets, mask, COMPUTE)
        if ROTATION:
            turned = gain[:, None] * gradient.to(tl.float64)
            turned += along_x[:, None] * latents.to(tl.float64) + along_q[:, None] * quantized.to(tl.float64)
            gradient = turned.to(COMPUTE)
        gradient += commitment * (latents - quantized)
        tl.store(grad_latents_ptr + offsets, tl.where(mask, gradient, 0.0), mask=live[:, None] & inside)
        if RESIDUALS:
            tl.store(residuals_ptr + offsets, quantized - latents, mask=live[:, None] & inside)


def _sizes(latents: Tensor, selections: int) -> dict:
    wide = latents.dtype == torch.float64
    sizes = tile.rows(latents.shape[1], probe.device_kind(latents))
    return {
        "D": latents.shape[1],
        "T": selections,
        "ROWS": sizes.rows,
        "DIMS": sizes.dims,
        "COMPUTE": tl.float64 if wide else tl.float32,
        "num_warps": sizes.warps,
    }


def _elements(indices: Tensor, d: int) -> Tensor:
    """M, the number of elements of the unmasked rows: () int64."""
    return (indices[:, 0] >= 0).sum() * d


def straight_through(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """quantized (N, D): the mean of the codes that indices (N, T) selects; error (): mean squared error, float32 or float64.

    A row whose first index is -1 is masked: quantized is 0 there and it has no error. The error of no rows is 0.
    """
    n, d = latents.shape
    dtype = torch.promote_types(latents.dtype, torch.float32)
    quantized = torch.empty_like(latents, dtype=probe.stored(latents.dtype))
    if n == 0:
        return quantized.to(latents.dtype), latents.new_zeros((), dtype=dtype)
    sizes = _sizes(latents, indices.shape[1])
    programs = triton.cdiv(n, sizes["ROWS"])
    errors = latents.new_empty(programs, dtype=torch.float64)
    with probe.on_device_of(latents):
        _forward_kernel[(programs,)](latents, codes, indices, quantized, errors, n, codes.shape[0], **sizes)
    error = errors.sum() / _elements(indices, d).clamp(min=1)
    return quantized.to(latents.dtype), error.to(dtype)


def straight_through_backward(
    latents: Tensor,
    codes: Tensor,
    indices: Tensor,
    grad_quantized: Tensor,
    grad_commitment: Tensor,
    grad_codebook: Tensor,
    rotation: bool,
    codes_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """grad_latents (N, D) and grad_codes (K, D), in the dtypes of latents and codes.

    grad_latents = grad_quantized, or R^T grad_quantized with ``rotation``, + grad_commitment 2 / M (latents - quantized);
    grad_codes[k] = grad_codebook 2 / (M T) times the sum of quantized - latents over the selections of k, 0 without
    ``codes_gradient``. Masked rows: 0.
    """
    (n, d), selections = latents.shape, indices.shape[1]
    if n == 0:
        return torch.empty_like(latents), torch.zeros_like(codes)
    dtype = torch.promote_types(latents.dtype, torch.float32)
    per_element = 2.0 / _elements(indices, d).clamp(min=1).to(dtype)
    commitment = (grad_commitment * per_element).to(dtype)
    grad_latents = torch.empty_like(latents, dtype=probe.stored(latents.dtype))
    residuals = torch.empty_like(latents, dtype=dtype) if codes_gradient else grad_latents
    sizes = _sizes(latents, selections)
    with probe.on_device_of(latents):
        _backward_kernel[(triton.cdiv(n, sizes["ROWS"]),)](
            latents, codes, indices, grad_quantized, commitment, grad_latents, residuals, n, codes.shape[0],
            ROTATION=rotation, RESIDUALS=codes_gradient, **sizes,
        )  # fmt: skip
    if not codes_gradient:
        return grad_latents.to(latents.dtype), torch.zeros_like(codes)
    # A masked row is masked in all its selections.
    selected = indices.where(indices[:, :1] >= 0, -1).flatten()
    positions, offsets = rows_by_code(selected, codes.shape[0])
    rows = positions if selections == 1 else positions.div_(selections, rounding_mode="floor")
    sums = segment_sums(residuals, offsets, rows, None, dtype)
    grad_codes = sums.mul_((grad_codebook * per_element).to(dtype) / selections)
    return grad_latents.to(latents.dtype), grad_codes.to(codes.dtype)
