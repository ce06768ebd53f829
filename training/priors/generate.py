"""What a prior makes, as a picture to look at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.priors.drawing import Drawing
from training.priors.evaluate import PriorEvaluation, judge, task_of
from training.priors.gallery import write_gallery
from training.priors.runs import FinishedPrior


@dataclass(frozen=True)
class Generation:
    """What is made, of which examples, and where it goes."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a prior's run."""
    out: Path
    """The picture that is written, pictures.png."""
    task: str | None = None
    """Another task with the same sequences, such as completion of a prior of unconditional. Default: the run's own."""
    prompt: tuple[str, ...] = ()
    """Texts, for tasks that take them. Default: those of the data."""
    count: int = 16
    """Examples, where no prompts are given."""
    data: str | None = None
    """A folder or zip with splits, or "scenes". Default: that of the run's training."""
    split: Literal["train", "val", "test"] = "test"
    """From which the examples come."""
    sampling: Drawing = Drawing()
    """How tokens are drawn."""
    seed: int = 0
    """Of what is drawn."""
    columns: int = 4
    """Of the grid."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        for name in ("count", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for text in self.prompt:
            if not text.strip():
                raise ValueError("prompt: expected a text, got an empty one")


def generate(wanted: Generation) -> Path:
    """Draw the panels of the run's task and write them; returns the picture's path."""
    run = FinishedPrior.open(wanted.run)
    # A few pictures more than examples: one may be unreadable.
    looked_at = PriorEvaluation(wanted.run, wanted.data, wanted.split, pictures=2 * wanted.count, task=wanted.task,
                                sampling=wanted.sampling, seed=wanted.seed, device=wanted.device)
    task = task_of(run, looked_at)
    judged = judge(run, looked_at, task)
    panels = task.panels(dataclasses.replace(judged, shown=True), list(wanted.prompt), min(wanted.count, len(judged.examples)))
    write_gallery(panels, wanted.out, wanted.columns)
    print(f"{wanted.out}: {len(panels)} examples of {task.name}")
    return wanted.out
