"""``python -m benchmarks.scaling --out FOLDER``: time and memory of the search and of the quantizer as N, K and D grow.

One of the three is swept at a time, the others stay at ``BASE``. A contender's sweep ends where the next point would need more time
or memory than the limits allow; scaling.json says where and why. Plots go beside it.
"""

import argparse
import datetime
import json
import pathlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

import vqkit
from benchmarks import contenders, naive, timing
from benchmarks.cases import Shape
from benchmarks.contenders import Call
from benchmarks.memory import peak_extra_memory
from vqkit.__main__ import device_line

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0
MEMORY_LIMIT = 4 * 2**30
# What the timed calls of a point take if it is quick. A slow one has two calls to warm up, the fewest timed ones and one for memory.
_TIMED_SECONDS = 2.0
_CALLS = 2 + timing.LEAST_REPEATS + 1

BASE = Shape(n=16384, size=1024, dim=32)
SWEEPS = {
    "n": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    "size": tuple(256 * 4**power for power in range(7)),
    "dim": tuple(4 * 2**power for power in range(9)),
}
TICKS = {"n": (1_000, 100_000, 10_000_000), "size": SWEEPS["size"][::2], "dim": SWEEPS["dim"][::2]}
LABELS = {"n": "N, latents", "size": "K, codes", "dim": "D, dimensions"}


@dataclass(frozen=True)
class Contender:
    """``prepare(shape)`` makes the inputs and returns the call; ``per_pair`` is the bytes that its N x K matrices have for each entry."""

    prepare: Callable[[Shape], Call]
    per_pair: int


def _search(search: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Shape], Call]:
    def prepare(shape: Shape) -> Call:
        latents = torch.randn(shape.n, shape.dim, device=DEVICE)
        codes = torch.randn(shape.size, shape.dim, device=DEVICE)
        return lambda: search(latents, codes)

    return prepare


def _training(name: str) -> Callable[[Shape], Call]:
    """The input (N, D, 1, 1) has its features side by side in memory, so that no contender copies it to get there."""

    def prepare(shape: Shape) -> Call:
        x = torch.randn(shape.n, shape.dim, 1, 1, device=DEVICE, requires_grad=True)
        return contenders.quantizer_step(name, shape.size, x)

    return prepare


# The one-hot matrix is int64 and then float32.
TASKS = {
    "nearest_code": {
        "vqkit": Contender(_search(vqkit.ops.nearest_code), 0),
        "addmm + argmin": Contender(_search(naive.matmul_argmin), 4),
        "cdist + argmin": Contender(_search(naive.cdist_argmin), 4),
    },
    "quantizer training step": {name: Contender(_training(name), size) for name, size in (("vqkit", 0), ("cdist + one-hot", 12))},
}


@dataclass(frozen=True)
class Point:
    """Seconds and bytes at one shape; ``extra_memory`` is None where the system cannot tell."""

    task: str
    contender: str
    swept: str
    shape: Shape
    median: float
    lower: float
    upper: float
    repeats: int
    extra_memory: int | None


@dataclass(frozen=True)
class Stop:
    """A sweep that ended before its last point, the first value left out, and why."""

    task: str
    contender: str
    swept: str
    value: int
    reason: str


def _obstacle(contender: Contender, shape: Shape, before: tuple[Point, float] | None, seconds: float) -> str | None:
    """Why ``shape`` is not measured. What was measured before, at a size smaller by the factor given, is taken to grow with it."""
    memory = shape.n * shape.size * contender.per_pair
    if before is None:
        time = 0.0
    else:
        point, factor = before
        time = _CALLS * point.median * factor
        memory = memory or (point.extra_memory or 0) * factor
    if memory > MEMORY_LIMIT:
        return f"it would need about {memory / 2**30:.3g} GiB, the limit is {MEMORY_LIMIT / 2**30:.3g} GiB"
    if time > seconds:
        return f"{_CALLS} calls would take about {time:.3g} s, the limit is {seconds:g} s"
    return None


def _sweep(task: str, name: str, swept: str, values: Iterable[int], seconds: float) -> tuple[list[Point], Stop | None]:
    contender, points = TASKS[task][name], []
    for value in values:
        shape = Shape(**asdict(BASE) | {swept: value})
        before = (points[-1], value / getattr(points[-1].shape, swept)) if points else None
        if reason := _obstacle(contender, shape, before, seconds):
            print(f"{task}, {name}: stops before {swept} = {value}: {reason}", flush=True)
            return points, Stop(task, name, swept, value, reason)
        torch.manual_seed(SEED)
        call = contender.prepare(shape)
        timed = timing.measure([call], torch.device(DEVICE), min(_TIMED_SECONDS, seconds))
        memory = peak_extra_memory(call, DEVICE)
        points.append(Point(task, name, swept, shape, timed.median, timed.lower, timed.upper, timed.repeats, memory))
        print(f"{task}, {name}: {swept} = {value}: {timed.median * 1e3:.3g} ms, {(memory or 0) / 2**20:.3g} MiB", flush=True)
    return points, None


def measure(seconds: float) -> dict:
    """All sweeps: {"about": ..., "points": [...], "stopped": [...]}, ready for JSON."""
    points, stops = [], []
    for task, contenders in TASKS.items():
        for swept, values in SWEEPS.items():
            for name in contenders:
                found, stop = _sweep(task, name, swept, values, seconds)
                points += found
                stops += [stop] if stop else []
    about = {
        "device": device_line(torch.device(DEVICE)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "vqkit": vqkit.__version__},
        "date": str(datetime.date.today()),
        "seed": SEED,
        "dtype": "float32",
        "base": asdict(BASE),
        "limits": {"seconds_a_point": seconds, "memory_bytes": MEMORY_LIMIT},
    }
    return {"about": about, "points": [asdict(point) for point in points], "stopped": [asdict(stop) for stop in stops]}


_COLOURS = ("#0b5fa5", "#e08a00", "#b8322a")
_MARKERS = ("o", "s", "^")
_STOPPED = {"marker": "x", "linestyle": "none", "color": "black", "markersize": 8, "markeredgewidth": 1.5}
# Rows of a plot: what is drawn, its label, what it is divided by, and the least that is drawn: a page of memory.
_QUANTITIES = (("median", "time, ms", 1e-3, 0.0), ("extra_memory", "extra memory, MiB", 2**20, 2**-8))


def _style(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    axes.grid(which="major", alpha=0.3, linewidth=0.6)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)


def _draw(axes: Axes, points: list[dict], quantity: tuple, stopped: bool, style: dict) -> None:
    key, _, unit, least = quantity
    drawn = [(point["shape"][point["swept"]], max(point[key] / unit, least)) for point in points if point[key] is not None]
    if not drawn:
        return
    axes.plot(*zip(*drawn), **style)
    if stopped:
        axes.plot(*drawn[-1], **_STOPPED, zorder=5)


def plot(results: dict, task: str) -> Figure:
    """Time above, extra memory below, a column for each of N, K and D."""
    about = results["about"]
    base, limits = about["base"], about["limits"]
    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    grid = figure.subplots(2, 3, sharex="col", sharey="row")
    names = list(dict.fromkeys(point["contender"] for point in results["points"] if point["task"] == task))
    styles = {n: {"color": c, "marker": m, "label": n, "markersize": 5} for n, c, m in zip(names, _COLOURS, _MARKERS, strict=False)}
    stops = {(stop["task"], stop["contender"], stop["swept"]) for stop in results["stopped"]}
    for column, swept in enumerate(LABELS):
        for axes, quantity in zip(grid[:, column], _QUANTITIES):
            _style(axes)
            for name in names:
                points = [p for p in results["points"] if (p["task"], p["contender"], p["swept"]) == (task, name, swept)]
                _draw(axes, points, quantity, (task, name, swept) in stops, styles[name] | {"linewidth": 2.4 if name == "vqkit" else 1.6})
        values = [p["shape"][swept] for p in results["points"] if (p["task"], p["swept"]) == (task, swept)]
        ticks = [tick for tick in TICKS[swept] if min(values, default=0) <= tick <= max(values, default=0)]
        grid[1, column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        fixed = ", ".join(f"{LABELS[name][0]} {base[name]:,}" for name in LABELS if name != swept)
        grid[0, column].set_title(fixed, fontsize=10)
        grid[1, column].set_xlabel(LABELS[swept])
    for axes, (_, label, _, _) in zip(grid[:, 0], _QUANTITIES):
        axes.set_ylabel(label)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if any(stop[0] == task for stop in stops):
        handles.append(Line2D([], [], **_STOPPED))
        labels.append(f"next point over {limits['memory_bytes'] / 2**30:g} GiB or {limits['seconds_a_point']:g} s")
    figure.suptitle(f"{task}: {about['device']}, float32", fontsize=11)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def write(results: dict, folder: pathlib.Path) -> None:
    """scaling.json and a picture for each task into ``folder``."""
    (folder / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
    for task in TASKS:
        plot(results, task).savefig(folder / f"{task.replace(' ', '_')}.png", dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder for scaling.json and the plots")
    parser.add_argument("--seconds", type=float, default=120.0, help="the longest that one point may take (%(default)g)")
    arguments = parser.parse_args()
    if not arguments.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {arguments.seconds:g}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(measure(arguments.seconds), arguments.out)


if __name__ == "__main__":
    main()
