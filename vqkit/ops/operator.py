"""The implementations of one operator, found by their common stem, and the call of the one that the backend rules choose."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from vqkit import backend as backends

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Operator:
    """All implementations of one operator: ``vqkit.kernels.<stem>``, ``vqkit.native`` and the reference given here.

    Every implementation has the same functions with the same signatures; ``compute`` calls the chosen one.
    """

    def __init__(self, stem: str, *, cuda: bool = False, **reference: Callable):
        self.stem = stem
        self._cuda = cuda
        self._reference = reference

    def refusals(self, tensors: tuple[Tensor, ...]) -> dict[str, Callable[[], str | None]]:
        """For each backend, best first, why it cannot compute on these tensors (None: it can)."""
        refusals = {"triton": lambda: self._triton_refusal(tensors)}
        if self._cuda:
            refusals["cuda"] = lambda: _native().cuda_rejects(*tensors)
        refusals["native"] = lambda: _native().rejects(*tensors)
        refusals["reference"] = lambda: None
        return refusals

    def compute(self, function: str, *arguments, backend: str | None = None, heads: bool = False):
        """Call ``function`` of the backend that is asked for or, else, of the best one that accepts the tensors.

        With ``heads`` all tensors have a first dimension of as many problems of their own, at least one: native code takes them
        all at once, the other backends take one after the other.
        """
        one = tuple(a[0] if heads and isinstance(a, Tensor) else a for a in arguments)
        tensors = tuple(a for a in one if isinstance(a, Tensor))
        chosen = backends.choose(self.stem, self.refusals(tensors), backend, on_request(tensors))
        call = self._function(function, chosen)
        if not heads or chosen == "native":
            return call(*arguments)
        count = next(len(a) for a in arguments if isinstance(a, Tensor))
        results = [call(*(a[head] if isinstance(a, Tensor) else a for a in arguments)) for head in range(count)]
        return tuple(torch.stack(parts) for parts in zip(*results))

    def _function(self, name: str, backend: str) -> Callable:
        if backend == "reference":
            return self._reference[name]
        if backend == "triton":
            return getattr(self._kernels(), name)
        return getattr(_native(), name if backend == "native" else f"cuda_{name}")

    def _kernels(self):
        return importlib.import_module(f"vqkit.kernels.{self.stem}")

    def _triton_refusal(self, tensors: tuple[Tensor, ...]) -> str | None:
        from vqkit.kernels import probe

        return probe.unavailable(*tensors) or self._kernels().rejects(*tensors)


def on_request(tensors: tuple[Tensor, ...]) -> frozenset[str]:
    """Backends that only an explicit request gets: CUDA C++ until it is measured, Triton's interpreter on CPU tensors."""
    return frozenset({"cuda"} if any(t.is_cuda for t in tensors) else {"cuda", "triton"})


def _native():
    return importlib.import_module("vqkit.native")


def check_rows(name: str, tensor: Tensor, *, like: tuple[str, Tensor] | None = None) -> None:
    """Raise unless ``tensor`` has one of the four dtypes, a last dimension of at least one and agrees with ``like``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating-point tensor, float32, float16, bfloat16 or float64, got {tensor.dtype}")
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name}: expected a last dimension of at least 1, got shape {tuple(tensor.shape)}")
    if like is None:
        return
    other, reference = like
    if tensor.shape[-1] != reference.shape[-1]:
        raise ValueError(f"{name}: expected last dimension {reference.shape[-1]} as in {other}, got {tensor.shape[-1]}")
    if tensor.dtype != reference.dtype:
        raise TypeError(f"{name}: expected {reference.dtype} as in {other}, got {tensor.dtype}")
    if tensor.device != reference.device:
        raise ValueError(f"{name}: expected device {reference.device} as in {other}, got {tensor.device}")


def check_codes(codes: Tensor, *, heads: bool = False) -> None:
    """Raise unless ``codes`` is a (K, D) table with K >= 1 or, where ``heads`` are taken, (H, K, D) with H >= 1."""
    check_rows("codes", codes)
    if codes.ndim not in ((2, 3) if heads else (2,)) or 0 in codes.shape:
        expected = "(K, D) with K >= 1" + (", or (H, K, D) with H >= 1" if heads else "")
        raise ValueError(f"codes: expected shape {expected}, got {tuple(codes.shape)}")


def check_size(name: str, value: int) -> None:
    """Raise unless ``value`` is an int, or one of a traced shape, of at least one."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
