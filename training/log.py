"""What a run says while it trains: one JSON line every few steps, and a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm


class RunLog:
    """RUN/log.jsonl, appended to. On resumption the lines after the checkpoint's step are dropped: those steps are done again."""

    def __init__(self, path: Path, resumed_at: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(path) if line["step"] <= resumed_at]
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(unfinished, path)
        self._file = path.open("a")

    def write(self, entry: dict) -> None:
        """Append a line; it is on disk's way when this returns."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict]:
    """The lines of a log, without a last one that a kill cut short."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Meter:
    """Means of the training terms, speed and the share of time spent waiting for data, since the last reading."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._passes = 0
        self._pictures = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, terms: dict[str, Tensor], pictures: int, waited: float) -> None:
        """Count one pass: its detached scalar terms, its pictures and the seconds it waited for them."""
        for name, value in terms.items():
            # Added on the device: reading every value would make a GPU wait at every step.
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        self._passes += 1
        self._pictures += pictures
        self._waited += waited

    def read(self) -> dict[str, float]:
        """The means since the last reading, which start anew."""
        means = dict(zip(self._sums, (torch.stack(list(self._sums.values())) / self._passes).tolist())) if self._sums else {}
        elapsed = time.perf_counter() - self._since
        speed = {"images_per_second": self._pictures / elapsed, "waiting_for_data": self._waited / elapsed}
        self.__init__()
        return means | speed


class RecentUsage:
    """Fraction of codes selected in the last steps; holds the step at which each code was selected last."""

    def __init__(self, codebook_sizes: tuple[int, ...], device: torch.device, window: int = 50):
        self.window = window
        self.last_selected = torch.full((sum(codebook_sizes),), -window, dtype=torch.int64, device=device)

    def add(self, step: int, counts: list[Tensor]) -> None:
        """Note the codes that this step selected, from the counts (K,) of each part."""
        if counts:
            self.last_selected[torch.cat(counts) > 0] = step

    def at(self, step: int, last_selected: Tensor) -> float:
        """Usage at a step, 0..1, from the newest steps of all ranks; 0 without a codebook."""
        return (last_selected > step - self.window).double().mean().item() if len(last_selected) else 0.0


def progress_bar(name: str, steps: int, done: int, shown: bool) -> tqdm:
    """A bar on the terminal; where there is none, a line every quarter of a minute."""
    interactive = sys.stderr.isatty()
    return tqdm(total=steps, initial=done, desc=name, unit="step", disable=not shown, dynamic_ncols=interactive,
                mininterval=0.5 if interactive else 15, maxinterval=10 if interactive else 30, smoothing=0.1)


def bar_text(entry: dict) -> dict[str, str]:
    """What the bar shows of a log line: losses, speed, usage."""
    named = ("l1", "l2", "commitment", "generator", "global_alignment", "masked_words", "relation", "translation")
    shown = {name: f"{entry[name]:.4f}" for name in named if name in entry}
    shown |= {name: f"{value:.3f}" for name, value in entry.items() if name.endswith("_nats")}
    for name, unit in (("images_per_second", "images/s"), ("tokens_per_second", "tokens/s")):
        if name in entry:
            shown[unit] = f"{entry[name]:,.0f}"
    if "codebook_usage" in entry:
        shown["codes used"] = f"{entry['codebook_usage']:.0%}"
    return shown
