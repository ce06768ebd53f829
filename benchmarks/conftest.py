"""How every benchmark is timed: warm, several rounds, the device waited for, extra memory beside the time."""

import statistics
import time

import pytest
import torch

import vqkit
from benchmarks.memory import peak_extra_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_benchmark_update_machine_info(config, machine_info):
    from vqkit.__main__ import device_line

    machine_info["vqkit"] = {
        "versions": {"vqkit": vqkit.__version__, "torch": torch.__version__},
        "device": device_line(torch.device(DEVICE)),
    }


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def measure(benchmark):
    """measure(call_of, group, contender): time ``call_of(contender)`` and note its extra memory.

    The others are held against ``call_of("vqkit")``, which is timed before every round of theirs: the ratio is of calls that took turns.
    """

    def run(call_of, group: str, contender: str, rounds: int = 7):
        function, beside = call_of(contender), call_of("vqkit") if contender != "vqkit" else None

        def timed():
            function()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        def ours():
            began = time.perf_counter()
            beside()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            paired.append(time.perf_counter() - began)

        paired = []
        benchmark.group = group
        timed()
        benchmark.extra_info |= {"contender": contender, "extra_memory": peak_extra_memory(timed, DEVICE)}
        benchmark.pedantic(timed, setup=ours if beside else None, rounds=rounds, iterations=1, warmup_rounds=1)
        if beside:
            # The warm-up round had one too.
            benchmark.extra_info["vqkit_beside"] = statistics.median(paired[-rounds:])

    torch.manual_seed(0)
    return run
