"""How well a prior does its task on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.checkpoint import write_json
from training.distributed import choose_device
from training.picture_codes import encode_pictures
from training.prior_runs import FinishedPrior
from training.sources import open_split
from training.tasks.task import Examples, Judged
from vqkit.models import Sampling


@dataclass(frozen=True)
class PriorEvaluation:
    """What is evaluated, on which examples."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a prior's run."""
    data: str | None = None
    """A folder or zip with splits, or "scenes". Default: that of the run's training."""
    split: Literal["train", "val", "test"] = "test"
    """Which split."""
    pictures: int | None = None
    """Only the first pictures of the split. Default: all."""
    batch_size: int = 64
    """Sequences in a pass."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    seed: int = 0
    """Of what is drawn."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        for name in ("batch_size", "pictures"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def evaluate_prior(wanted: PriorEvaluation) -> dict:
    """Measure, print, write RUN/metrics.json; returns what it holds."""
    run = FinishedPrior.open(wanted.run)
    judged = judge(run, wanted)
    found = run.task().measure(judged)
    metrics = {"task": run.config["task"], "recipe": run.config["recipe"], "steps": run.steps, "split": wanted.split,
               "examples": len(judged.examples), **found}
    write_json(wanted.run / "metrics.json", metrics)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    return metrics


def judge(run: FinishedPrior, wanted: PriorEvaluation) -> Judged:
    """The run's models and the examples of a split, on the device."""
    device, task = choose_device(wanted.device), run.task()
    source = open_split(wanted.data or run.config["data"], wanted.split, seed=run.config["seed"])
    tokenizer = run.tokenizer().to(device)
    codes = encode_pictures(tokenizer, source, task.pictures, limit=wanted.pictures)
    rows = task.rows(source)
    examples = Examples(rows.where(rows.pictures < len(codes.codes)), codes)
    return Judged(run.prior().to(device), tokenizer, examples, source, wanted.sampling, wanted.batch_size, wanted.seed)
