"""The compiled module: the one file that loads it and that touches addresses and streams.

All functions take contiguous tensors and allocate what they return. Processor functions use ``torch.get_num_threads()`` threads and give the
same bits for any number of them. float16 and bfloat16 are computed in float32 and rounded once. The environment variable
``VQKIT_ISA`` (``portable``, ``avx2``, ``avx512``, ``amx``), read at every call, forces an instruction set of the nearest-code search; the default
is the best that the processor has.
"""

from pathlib import Path

import torch
from torch import Tensor

try:
    from vqkit import _native
except ImportError as error:
    _native = None
    _note = Path(__file__).with_name("_native_reason.txt")
    _reason = _note.read_text().strip() if _note.exists() else str(error)

MAX_RANKS = 8
_MAX_CODES = 2**31 - 1024
_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def describe() -> dict:
    """What was built, for the doctor.

    Returns ``built`` (bool) and, when False, ``reason``; else ``isa`` (the instruction set in use), ``threads`` (what the next call
    would use), ``openmp`` (its version, empty without), ``compiler``, ``cuda_architectures`` (such as "80,90,100", empty without
    CUDA) and ``cuda_reason`` (why there is no CUDA, empty when there is).
    """
    if _native is None:
        return {"built": False, "reason": _reason}
    try:
        isa = _native.isa()
    except ValueError as error:
        isa = str(error)
    return {"built": True, "isa": isa, "threads": torch.get_num_threads(), **_native.build()}


def rejects(*tensors: Tensor) -> str | None:
    """Why the compiled processor code cannot compute on these tensors, or None when it can."""
    if _native is None:
        return f"the native module is not built: {_reason}"
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"native code runs on the CPU, got a tensor on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in _DTYPES:
            return f"native code computes float32, float64, float16 and bfloat16, got {tensor.dtype}"
    return None


def _function(name: str, dtype: torch.dtype):
    return getattr(_native, f"{name}_{'double' if dtype == torch.float64 else 'float'}")


def _check(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raise unless the tensor is one to compute on, of this shape (None: any size)."""
    if reason := rejects(tensor):
        raise RuntimeError(f"{name}: {reason}")
    _check_layout(name, tensor, *shape)


def _check_integers(name: str, tensor: Tensor, *shape: int | None) -> None:
    _check(name, tensor, *shape)
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64, got {tensor.dtype}")


def _check_layout(name: str, tensor: Tensor, *shape: int | None) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tuple(tensor.stride())} for shape {tuple(tensor.shape)}")
    if tensor.ndim != len(shape) or any(wanted not in (None, size) for size, wanted in zip(tensor.shape, shape)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(tensor.shape)}")


def _check_ranks(codes: Tensor, k: int) -> None:
    size = codes.shape[-2]
    if not 1 <= k <= min(size, MAX_RANKS):
        raise ValueError(f"k: expected 1 to {min(size, MAX_RANKS)} for {size} codes, got {k}")
    if size > _MAX_CODES:
        raise ValueError(f"codes: expected at most {_MAX_CODES}, got {size}")


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def nearest_codes(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool) -> tuple[Tensor, Tensor]:
    """The k nearest codes of each latent, nearest first.

    latents (N, D) and codes (K, D) of one dtype; 1 <= k <= min(K, 8). Returns distances (N, k), float32 (float64 for float64): squared
    Euclidean, or 1 - cosine similarity; and indices (N, k) int64. ``exact``: ranked by the float64 score of the inputs, ties
    to the lowest index; else by a float32 score (float64 for float64), ties to the lowest index. A row with NaN or inf gets indices 0..k-1 at distance
    NaN; a code with NaN or inf comes after every finite one, at distance inf. Under cosine a zero vector has similarity 0 with all.
    With a first dimension H, latents (H, N, D) and codes (H, K, D) are as many searches of their own: (H, N, k).
    """
    heads = latents.shape[:1] if latents.ndim == 3 else ()
    _check("latents", latents, *heads, None, None)
    _check("codes", codes, *heads, None, latents.shape[-1])
    _check_ranks(codes, k)
    dtype, halves = _computed(latents.dtype), latents.dtype == codes.dtype == torch.bfloat16
    latents, codes = latents.to(dtype), codes.to(dtype)
    distances = torch.empty(*latents.shape[:-1], k, dtype=dtype)
    indices = torch.empty(*latents.shape[:-1], k, dtype=torch.int64)
    _function("nearest_codes", dtype)(
        latents.data_ptr(), codes.data_ptr(), *(heads or (1,)), latents.shape[-2], codes.shape[-2], latents.shape[-1], k, cosine, exact, halves,
        torch.get_num_threads(), distances.data_ptr(), indices.data_ptr(),
    )  # fmt: skip
    return distances, indices


def straight_through(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each row's selected codes and the mean squared error.

    latents (N, D), codes (K, D), indices (N, T) int64 with -1 first in a masked row. Returns quantized (N, D) in the latents' dtype, zero
    where masked; and error (), float32 (float64 for float64), the mean of (latents - quantized)^2 over the unmasked rows, added in
    float64. Raises IndexError for an index outside [0, K).
    """
    _check_selection(latents, codes, indices)
    dtype = _computed(latents.dtype)
    wide, codes = latents.to(dtype), codes.to(dtype)
    quantized = torch.empty_like(wide)
    error = _function("straight_through", dtype)(*_selection(wide, codes, indices), quantized.data_ptr())
    return quantized.to(latents.dtype), torch.tensor(error, dtype=dtype)


def straight_through_backward(
    latents: Tensor, codes: Tensor, indices: Tensor, grad_quantized: Tensor, grad_commitment: Tensor, grad_codebook: Tensor, rotation: bool,
    codes_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of ``straight_through`` towards latents (N, D) and codes (K, D), in their dtypes.

    grad_latents = grad_quantized, or R^T grad_quantized with ``rotation`` (arXiv 2410.06424), + grad_commitment * 2/M (latents - quantized);
    grad_codes[k] = sum over the entries that hold k of grad_codebook * 2/(M T) (quantized - latents), M the elements of unmasked rows;
    0 without ``codes_gradient``.
    """
    _check_selection(latents, codes, indices)
    _check("grad_quantized", grad_quantized, *latents.shape)
    dtype = _computed(latents.dtype)
    wide, wide_codes, grad = latents.to(dtype), codes.to(dtype), grad_quantized.to(dtype)
    grad_latents, grad_codes = torch.empty_like(wide), torch.empty_like(wide_codes)
    _function("straight_through_backward", dtype)(
        *_selection(wide, wide_codes, indices), grad.data_ptr(), float(grad_commitment), float(grad_codebook) if codes_gradient else 0.0, rotation,
        grad_latents.data_ptr(), grad_codes.data_ptr(),
    )
    return grad_latents.to(latents.dtype), grad_codes.to(codes.dtype)


def _check_selection(latents: Tensor, codes: Tensor, indices: Tensor) -> None:
    _check("latents", latents, None, None)
    _check("codes", codes, None, latents.shape[1])
    _check_integers("indices", indices, latents.shape[0], None)
    if indices.shape[1] == 0:
        raise ValueError("indices: expected at least one code a latent, got a last dimension of 0")


def _selection(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[int, ...]:
    return (
        latents.data_ptr(), codes.data_ptr(), indices.data_ptr(), latents.shape[0], latents.shape[1], codes.shape[0], indices.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip


def code_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """The sum and the number of the latents that selected each code.

    latents (N, D), indices (N,) int64 with -1 where masked. Returns sums (K, D), float32 (float64 for float64), added in float64 in
    ascending order of the rows and rounded once; and counts (K,) int64. Raises IndexError for an index outside [0, K).
    """
    _check("latents", latents, None, None)
    _check_integers("indices", indices, latents.shape[0])
    dtype = _computed(latents.dtype)
    latents = latents.to(dtype)
    sums = torch.empty(codebook_size, latents.shape[1], dtype=dtype)
    counts = torch.empty(codebook_size, dtype=torch.int64)
    _function("code_statistics", dtype)(
        latents.data_ptr(), indices.data_ptr(), latents.shape[0], latents.shape[1], codebook_size, torch.get_num_threads(),
        sums.data_ptr(), counts.data_ptr(),
    )
    return sums, counts


def aggregate(offsets: Tensor, neighbours: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    """y[i] = sum over e in [offsets[i], offsets[i + 1]) of weights[e] * features[neighbours[e]].

    offsets (V + 1,) and neighbours (E,) int64, weights (E,), features (U, F). Returns (V, F) in the features' dtype; edges are added in order.
    Raises IndexError for offsets that do not ascend from 0 to E and neighbours outside [0, U).
    """
    _check_integers("offsets", offsets, None)
    _check_integers("neighbours", neighbours, None)
    _check("weights", weights, neighbours.shape[0])
    _check("features", features, None, None)
    dtype = _computed(features.dtype)
    wide, weights = features.to(dtype), weights.to(dtype)
    out = torch.empty(offsets.shape[0] - 1, features.shape[1], dtype=dtype)
    _function("aggregate", dtype)(
        offsets.data_ptr(), neighbours.data_ptr(), weights.data_ptr(), offsets.shape[0] - 1, neighbours.shape[0], wide.data_ptr(),
        wide.shape[0], wide.shape[1], torch.get_num_threads(), out.data_ptr(),
    )
    return out.to(features.dtype)


def cuda_rejects(*tensors: Tensor) -> str | None:
    """Why the compiled CUDA search cannot compute on these tensors, or None when it can.

    Only tensors on a CUDA device make this call into CUDA: importing and asking about others start nothing.
    """
    if _native is None:
        return f"the native module is not built: {_reason}"
    if not hasattr(_native, "cuda_refusal"):
        return f"the native module was built without CUDA: {_native.build()['cuda_reason']}"
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"the CUDA search runs on CUDA devices, got a tensor on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in _CUDA_DTYPES:
            return f"the CUDA search computes float32, float16 and bfloat16, got {tensor.dtype}"
    for device in {tensor.device for tensor in tensors}:
        if reason := _native.cuda_refusal(device.index):
            return reason
    return None


def cuda_nearest_codes(latents: Tensor, codes: Tensor, k: int, cosine: bool, exact: bool) -> tuple[Tensor, Tensor]:
    """``nearest_codes`` on a CUDA device, by portable CUDA C++ (sm_80 and later) on the current stream.

    The same contract, for float32, float16 and bfloat16; distances are float32. It was compiled, not yet timed, on its devices, so it serves
    explicit requests (``backend="cuda"``) until it has been measured; the automatic choice does not take it.
    """
    if reason := cuda_rejects(latents, codes):
        raise RuntimeError(f"cuda_nearest_codes: {reason}")
    _check_layout("latents", latents, None, None)
    _check_layout("codes", codes, None, latents.shape[1])
    _check_ranks(codes, k)
    if codes.dtype != latents.dtype:
        raise TypeError(f"codes: expected {latents.dtype} as in latents, got {codes.dtype}")
    with torch.cuda.device(latents.device):
        problem = _native.CudaNearestProblem(
            str(latents.dtype).removeprefix("torch."), latents.shape[0], codes.shape[0], latents.shape[1], k, cosine, exact, latents.device.index
        )
        distances = torch.empty(latents.shape[0], k, dtype=torch.float32, device=latents.device)
        indices = torch.empty(latents.shape[0], k, dtype=torch.int64, device=latents.device)
        if latents.shape[0] == 0:
            return distances, indices
        # freed on return, reused only by what follows on this stream
        workspace = torch.empty(_native.cuda_nearest_workspace(problem), dtype=torch.uint8, device=latents.device)
        problem.latents, problem.codes, problem.workspace = latents.data_ptr(), codes.data_ptr(), workspace.data_ptr()
        problem.distances, problem.indices = distances.data_ptr(), indices.data_ptr()
        problem.stream = torch.cuda.current_stream(latents.device).cuda_stream
        _native.cuda_nearest_codes(problem)
    return distances, indices
