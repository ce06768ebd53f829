"""Peak extra memory of one call."""

import ctypes
import gc
import pathlib
from collections.abc import Callable

import torch


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_extra_memory(function: Callable[[], object], device: str) -> int | None:
    """Bytes that ``function`` needs at its peak above what was in use before; None where the system cannot tell.

    On CUDA, torch's allocator. On Linux, the resident set of the process: freed memory is given back to the system first and
    the high-water mark is reset, so that what the C++ code allocates counts too.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        function()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None
