"""What was measured of training steps, as JSON and as Markdown."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.breakdown import Share
from benchmarks.recipe_step import OURS
from benchmarks.report import factor, mebibytes, milliseconds
from benchmarks.timing import Timing


@dataclass
class StepRow:
    """A contender's step. Times are seconds, `first` with compilation; `reason` says why there are none."""

    recipe: str
    contender: str
    batch_size: int
    reason: str | None = None
    first: float | None = None
    median: float | None = None
    lower: float | None = None
    upper: float | None = None
    repeats: int = 0
    extra_memory: int | None = None

    def note(self, timing: Timing, extra_memory: int | None) -> None:
        self.median, self.lower, self.upper, self.repeats = timing.median, timing.lower, timing.upper, timing.repeats
        self.extra_memory = extra_memory


@dataclass(frozen=True)
class Quantisation:
    """Seconds of the quantizer alone, forward and backward: vqkit's, what it consists of, and the naive one's."""

    recipe: str
    ours: float
    naive: float | None
    share: Share | None


@dataclass(frozen=True)
class Loading:
    """Pictures a second with the loop's own loader, and the share of the time that it waits, 0..1."""

    recipe: str
    images_per_second: float
    waiting_for_data: float


@dataclass
class TrainingResults:
    """All of one run; `about` is what the figures hold for."""

    about: dict[str, str]
    steps: list[StepRow] = field(default_factory=list)
    quantisation: list[Quantisation] = field(default_factory=list)
    loading: list[Loading] = field(default_factory=list)
    options: list[StepRow] = field(default_factory=list)

    def write(self, folder: Path, name: str) -> None:
        """Replace ``<folder>/<name>.json`` and ``.md``, each in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".json", json.dumps(asdict(self), indent=1)), (".md", self.markdown())):
            part = folder / f"{name}{suffix}.part"
            part.write_text(text + "\n")
            os.replace(part, folder / f"{name}{suffix}")

    def markdown(self) -> str:
        lines = ["# Training steps", "", *(f"- {name}: {value}" for name, value in self.about.items()), ""]
        lines += [
            "A step is the training loop's own: forward, losses, backward, optimiser, running mean of the weights, at the recipe's own sizes, on "
            "one batch of noise. Contenders take turns step by step; medians, with the quartiles beside them. *Extra memory* is a step's peak "
            "above what the models and optimisers hold; the *first step* compiles. The naive quantizer has the same weights and computes the same: all distances, one-hot "
            "matrices, torch's autograd.",
            "",
            *_table(("recipe", "contender", "step", "quartiles", "steps/s", "pictures/s", "extra memory", "first step", "vqkit is faster by"),
                    [self._step(row, self.steps) for row in self.steps if row.median]),
            "",
            "## What quantisation takes of a step",
            "",
            "The quantizer alone, forward and backward, over vqkit's step. *Codebook*: making codes that are computed, and its gradient. *Search*: "
            "the nearest codes. *Gradients*: straight-through and losses, both ways. *Statistics*: running means, anchors, counts. *Other*: "
            "layout, projections, Python.",
            "",
            *_table(("recipe", "vqkit", "of its step", "codebook", "search", "gradients", "statistics", "other", "naive", "of its step",
                     "vqkit is faster by"),
                    [self._quantisation(row) for row in self.quantisation]),
            "",
            "## Waiting for data",
            "",
            "The loop with its own loader in the first epoch, when every picture is still to be drawn.",
            "",
            *_table(("recipe", "pictures/s", "share of time waiting"),
                    [(row.recipe, f"{row.images_per_second:,.0f}", f"{row.waiting_for_data:.1%}") for row in self.loading]),
            "",
            "## Other ways to a faster step",
            "",
            "Each alone, against the loop as it is, in turns. A ratio above 1 is a gain.",
            "",
            *_table(("recipe", "option", "step", "quartiles", "extra memory", "first step", "faster by"),
                    [self._option(row) for row in self.options if row.median]),
        ]  # fmt: skip
        missing = [row for row in (*self.steps, *self.options) if row.median is None]
        if missing:
            why = [(row.recipe, row.contender, (row.reason or "").replace("|", "/")) for row in missing]
            lines += ["", "Not measured:", "", *_table(("recipe", "contender", "why"), why)]
        return "\n".join(lines)

    def _step(self, row: StepRow, rows: list[StepRow]) -> tuple[str, ...]:
        ours = _median(rows, row.recipe, OURS)
        ratio = "" if row.contender == OURS or not ours else f"{row.median / ours:.2f}x"
        quartiles = f"{milliseconds(row.lower)}..{milliseconds(row.upper)}"
        speed = (f"{1 / row.median:.2f}", f"{row.batch_size / row.median:,.0f}")
        return row.recipe, row.contender, milliseconds(row.median), quartiles, *speed, mebibytes(row.extra_memory), milliseconds(row.first), ratio

    def _option(self, row: StepRow) -> tuple[str, ...]:
        plain = _median(self.options, row.recipe, OURS)
        quartiles = f"{milliseconds(row.lower)}..{milliseconds(row.upper)}"
        name, ratio = ("as it is", "") if row.contender == OURS else (row.contender, f"{plain / row.median:.2f}x")
        return row.recipe, name, milliseconds(row.median), quartiles, mebibytes(row.extra_memory), milliseconds(row.first), ratio

    def _quantisation(self, row: Quantisation) -> tuple[str, ...]:
        step, naive_step = (_median(self.steps, row.recipe, name) for name in (OURS, "naive quantizer"))
        parts = ("-",) * 5
        if row.share:
            known = (row.share.codebook, row.share.search, row.share.gradients, row.share.statistics)
            parts = tuple(milliseconds(value) for value in (*known, max(0.0, row.ours - sum(known))))
        naive = ("-", "-", "")
        if row.naive:
            naive = (milliseconds(row.naive), f"{row.naive / naive_step:.1%}", factor(row.naive / row.ours))
        return row.recipe, milliseconds(row.ours), f"{row.ours / step:.1%}", *parts, *naive


def _median(rows: list[StepRow], recipe: str, contender: str) -> float | None:
    return next((row.median for row in rows if (row.recipe, row.contender) == (recipe, contender)), None)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (names, ("---",) * len(names), *rows)]
