"""Whether Triton can compute here, and on which tensors. The one place that survives an environment without Triton."""

import contextlib
import functools
import subprocess

import numpy as np
import torch
from torch import Tensor

try:
    import triton

    IMPORT_ERROR = None
except ImportError as error:
    triton = None
    IMPORT_ERROR = str(error)

LEAST_CAPABILITY = (8, 0)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTERPRETER = "interpreter"


def _interpreting() -> bool:
    """Triton decides when a kernel is defined, so ask it to define one: TRITON_INTERPRET may have changed since."""
    if triton is None:
        return False

    def kernel():
        pass

    return not isinstance(triton.jit(kernel), triton.JITFunction)


INTERPRETING = _interpreting()


def _interpreter_fault() -> str | None:
    """Why this interpreter cannot run our loops: before 3.7 it turns arrays into integers as NumPy 2.4 no longer does."""
    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if release < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return f"the interpreter of Triton {triton.__version__} cannot loop with NumPy {np.__version__}"
    return None


def unavailable(*tensors: Tensor) -> str | None:
    """Why Triton cannot compute on these tensors; None when it can.

    It computes on CUDA tensors of compute capability 8.0 or more and, with TRITON_INTERPRET=1 set before Triton is imported,
    on CPU tensors. Floating-point tensors are float32, float16, bfloat16 or float64.
    """
    if triton is None:
        return f"Triton cannot be imported: {IMPORT_ERROR}"
    if INTERPRETING and (fault := _interpreter_fault()):
        return fault
    for device in {tensor.device for tensor in tensors}:
        if reason := _device_refusal(device):
            return reason
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            return f"dtype {tensor.dtype} is not among {', '.join(map(str, FLOATS))}"
    return None


def _device_refusal(device: torch.device) -> str | None:
    if INTERPRETING and device.type in ("cpu", "cuda"):
        return None
    if device.type != "cuda":
        return f"the tensors are on {device.type}; Triton needs CUDA, or TRITON_INTERPRET=1 set before it is imported"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"{device} has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 or more"
    return _driver_fault()


@functools.cache
def _driver_fault() -> str | None:
    """Why Triton cannot launch: it compiles a C stub for its driver, which takes a compiler and Python's headers."""
    try:
        triton.runtime.driver.active.get_current_target()
    except (RuntimeError, AssertionError, ImportError, OSError, subprocess.SubprocessError) as error:
        return f"Triton cannot build its driver: {error}"
    return None


def device_kind(tensor: Tensor) -> tuple[int, int] | str:
    """What tile sizes depend on: the compute capability of the tensor's device, or ``INTERPRETER``."""
    return INTERPRETER if INTERPRETING else torch.cuda.get_device_capability(tensor.device)


def processors(tensor: Tensor) -> int:
    """How many programs can run at once, one a multiprocessor."""
    return 1 if INTERPRETING else torch.cuda.get_device_properties(tensor.device).multi_processor_count


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, whatever the device of its arguments."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel writes what is wanted in ``dtype``: the interpreter truncates to bfloat16 instead of rounding."""
    return torch.float32 if INTERPRETING and dtype == torch.bfloat16 else dtype
