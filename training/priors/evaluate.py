"""How well a prior does its task on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.checkpoint import write_json
from training.data.sources import Source, open_split
from training.distributed import choose_device
from training.feature_net import feature_net
from training.priors.codes import PictureCodes, encode_pictures, read_codes
from training.priors.drawing import Drawing
from training.priors.runs import FinishedPrior
from training.priors.train import CODES
from training.tasks import find_task
from training.tasks.task import Examples, Judged, Task
from vqkit.metrics import InceptionFeatures, PictureFeatures


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
    """At most so many pictures of the split: the first, of class folders spread evenly. Default: all."""
    task: str | None = None
    """Another task with the same sequences, such as linear-probe of a prior of unconditional. Default: the run's own."""
    batch_size: int = 64
    """Sequences in a pass."""
    sampling: Drawing = Drawing()
    """How tokens are drawn."""
    inception_weights: Path | None = None
    """pytorch-fid's pt_inception-2015-12-05-6726825d.pth, for fid, kid and inception_score of generated pictures."""
    feature_net: Path | None = None
    """A folder where feature networks of data sets are kept: for fd_net, kd_net and others of generated pictures, which are no FID. That
    of the run's data is trained there in a minute where it is not there yet."""
    seed: int = 0
    """Of what is drawn."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        for name in ("batch_size", "pictures"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def evaluate_prior(wanted: PriorEvaluation) -> dict:
    """Measure, print, write RUN/metrics.json, of another task RUN/metrics.TASK.json; returns what it holds."""
    run = FinishedPrior.open(wanted.run)
    task = task_of(run, wanted)
    judged = judge(run, wanted, task)
    found = task.measure(judged)
    metrics = {"task": task.name, "recipe": run.config["recipe"], "steps": run.steps, "split": wanted.split,
               "examples": len(judged.examples), **found}
    if judged.features:
        metrics["features"] = ", ".join(network.identity for network in judged.features)
    own = task.name == run.config["task"]
    write_json(wanted.run / ("metrics.json" if own else f"metrics.{task.name}.json"), metrics)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    return metrics


def task_of(run: FinishedPrior, wanted: PriorEvaluation) -> Task:
    """The task that is evaluated: the run's own, or another one that learns from the training split what it needs.

    Raises ValueError where that one's sequences are not those that the prior was trained on.
    """
    own = run.task()
    if wanted.task in (None, own.name):
        return own
    kind = find_task(wanted.task)
    other = kind(own.pictures, kind.learn(_training_split(run)))
    if other.segments != own.segments:
        said = [", ".join(segment.name for segment in task.segments) for task in (own, other)]
        raise ValueError(f"task: expected one with the sequences of {own.name} ({said[0]}), got {other.name} ({said[1]})")
    return other


def judge(run: FinishedPrior, wanted: PriorEvaluation, task: Task | None = None) -> Judged:
    """The run's models and the examples of a split, on the device; `task` is that of `task_of` where it is at hand."""
    device, task = choose_device(wanted.device), task or task_of(run, wanted)
    source = open_split(wanted.data or run.config["data"], wanted.split, seed=run.config["seed"]).limited(wanted.pictures)
    tokenizer = run.tokenizer().to(device)
    examples = Examples(task.rows(source), encode_pictures(tokenizer, source, task.pictures))
    features = tuple(network.to(device) for network in _feature_networks(wanted, run, task))
    return Judged(run.prior().to(device), tokenizer, examples, source, wanted.sampling.over(task.sampling), wanted.batch_size, wanted.seed, features,
                  training=lambda: _training_examples(run, task))


def _training_split(run: FinishedPrior) -> Source:
    return open_split(run.config["data"], "train", seed=run.config["seed"])


def _training_examples(run: FinishedPrior, task: Task) -> Examples:
    """What the prior was trained on, by the codes that its run holds."""
    codes: PictureCodes = read_codes(run.folder / CODES)
    return Examples(task.rows(_training_split(run).limited(len(codes.codes))), codes)


def _feature_networks(wanted: PriorEvaluation, run: FinishedPrior, task: Task) -> list[PictureFeatures]:
    found: list[PictureFeatures] = []
    if wanted.inception_weights is not None:
        found.append(InceptionFeatures(wanted.inception_weights))
    if wanted.feature_net is not None:
        # One seed for all runs: their distances are comparable over one network only.
        found.append(feature_net(run.config["data"], task.pictures.resolution, 0, wanted.feature_net, fit=task.pictures.fit))
    return found
