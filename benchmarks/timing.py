"""Times of calls on a device: CUDA events after a warm-up, or the wall clock on the CPU; inputs that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

LEAST_REPEATS, MOST_REPEATS = 3, 200
# Of calls that take turns.
LEAST_ROUNDS = 5
# On the CPU, which says nothing of its caches.
_CPU_CACHE = 1 << 20
_MOST_SETS = 32


@dataclass(frozen=True)
class Timing:
    """Seconds: the median and both quartiles over ``repeats`` calls; ``first`` is the first call's, compilation included."""

    median: float
    lower: float
    upper: float
    repeats: int
    first: float


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(calls: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> Timing:
    """Time calls that take turns, for about ``seconds`` once the first has returned."""

    def run(call) -> float:
        began = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - began

    first = run(calls[0])
    warm = [run(calls[0])]
    for call in calls[1:]:
        warm.append(run(call))
        if sum(warm) > seconds / 2:
            break
    repeats = min(MOST_REPEATS, max(LEAST_REPEATS, int(seconds / max(min(warm), 1e-9))))
    # Only sets that are warm take part.
    calls = calls[: len(warm)]
    turns = [calls[turn % len(calls)] for turn in range(repeats)]
    times = _events(turns, device) if device.type == "cuda" else [run(call) for call in turns]
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper, repeats, first)


def take_turns(calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, Timing]:
    """Time calls by the wall clock, each once a round, for about ``seconds`` once each has run twice.

    What else the machine does then meets all of them alike: their medians may be compared. The order turns with every round.
    """

    def run(call) -> float:
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - began

    first = {name: run(call) for name, call in calls.items()}
    warm = sum(run(call) for call in calls.values())
    rounds = min(MOST_REPEATS, max(LEAST_ROUNDS, int(seconds / warm)))
    names, times = list(calls), {name: [] for name in calls}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            times[name].append(run(calls[name]))
    quartiles = {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()}
    return {name: Timing(median, lower, upper, rounds, first[name]) for name, (lower, median, upper) in quartiles.items()}


def _events(turns: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """One pair of events a call; the host waits only at the end, so launches overlap as they do in a training loop."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in turns]
    for call, (start, end) in zip(turns, pairs):
        start.record()
        call()
        end.record()
    synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def sets_needed(size: int, device: torch.device) -> int:
    """How many sets of inputs of ``size`` bytes are larger than the device's cache thrice over, so that each finds it cold."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _CPU_CACHE
    return min(_MOST_SETS, max(1, -(-3 * cache // max(size, 1))))
