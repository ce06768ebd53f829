"""What the examples share: the same steps before and after the change, timed, and how far the numbers are apart."""

import time
from collections.abc import Callable
from statistics import median

import torch


def timed(step: Callable[[], torch.Tensor], steps: int) -> tuple[list[float], float]:
    """The values that `step` returns, one a call, and the median seconds of a call; the first call warms up."""
    values, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        values.append(float(step()))
        seconds.append(time.perf_counter() - start)
    return values, median(seconds[1:] or seconds)


def report(before: tuple[list[float], float] | None, after: tuple[list[float], float]) -> None:
    """A line for each, and one that compares them."""
    for name, found in (("before", before), ("after", after)):
        if found is not None:
            values, seconds = found
            print(f"{name:>6}: {seconds * 1e3:8.1f} ms a step, loss {values[0]:.6f} -> {values[-1]:.6f}")
    if before is not None:
        largest = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(before[0], after[0], strict=True))
        print(f"{before[1] / after[1]:.1f} times as fast, losses differ by {largest:.1e} of their value at most")
