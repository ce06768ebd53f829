"""VQCT and a plain VQ-GAN side by side on built-in scenes: trained, evaluated, shown."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from training import checkpoint
from training.data.batches import PictureDataset, to_float
from training.data.sources import open_split
from training.distributed import started
from training.evaluate import MEAN_COLOR, Evaluation, evaluate, table
from training.recipes import RECIPES
from training.report import Report, write_report
from training.tokenizer import train

SIDE_BY_SIDE = ("vqgan", "vqct")
_LEAST, _MOST = 60, 2000
# A training step over a bare one: data, running mean, words, checkpoints.
_OVERHEAD = 1.15


@dataclass(frozen=True)
class Demo:
    """How long the demonstration takes, and where it goes."""

    out: Path = Path("runs/demo")
    """Folder of both runs and of report.html. The same command on a stopped demonstration resumes it."""
    minutes: float = 7.0
    """Time for training both; the number of steps, the same for both, follows from the speed of the machine."""
    steps: int | None = None
    """The number of steps of each, in the place of `minutes`."""
    resolution: int = 64
    """Side of the pictures in pixels, a multiple of 8."""
    seed: int = 0
    """Of weights, order and scenes."""

    def __post_init__(self):
        if self.minutes <= 0:
            raise ValueError(f"minutes: expected more than 0, got {self.minutes}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")


def demo(wanted: Demo) -> Path:
    """Train, evaluate and report; returns the page. Under way it may be stopped and started again."""
    began = time.perf_counter()
    steps = _agreed_steps(wanted)
    rows, folders = [], [wanted.out / recipe for recipe in SIDE_BY_SIDE]
    for recipe, folder in zip(SIDE_BY_SIDE, folders, strict=True):
        settings = RECIPES[recipe].settings
        train(recipe, dataclasses.replace(settings, data="scenes", out=folder, steps=steps, resolution=wanted.resolution, seed=wanted.seed))
        rows.append(evaluate(Evaluation(run=folder, data="scenes")))
    rows.append(evaluate(Evaluation(run=Path(MEAN_COLOR), data="scenes", resolution=wanted.resolution, out=wanted.out / MEAN_COLOR)))
    page = write_report(Report(runs=tuple(folders), out=wanted.out / "report.html"), extra_rows=rows[-1:])
    print(f"\nScenes that neither model has seen, {wanted.resolution}x{wanted.resolution}:\n{table(rows)}\n")
    print(f"{page}: pictures, curves, codes and words; {(time.perf_counter() - began) / 60:.1f} minutes")
    return page


def _agreed_steps(wanted: Demo) -> int:
    """The number of steps, decided at the first start and kept in demo.json, so that a resumed demonstration has the same."""
    path = wanted.out / "demo.json"
    if wanted.steps is not None:
        return wanted.steps
    if path.is_file():
        return json.loads(path.read_text())["steps"]
    seconds = _seconds_a_step(wanted.resolution)
    steps = int(wanted.minutes * 60 / len(SIDE_BY_SIDE) / (_OVERHEAD * seconds))
    steps = min(_MOST, max(_LEAST, steps // 10 * 10))
    print(f"{seconds:.2f} seconds a step on this machine: {steps} steps each in about {wanted.minutes:g} minutes")
    checkpoint.write_json(path, {"steps": steps, "seconds_a_step": round(seconds, 4)})
    return steps


def _seconds_a_step(resolution: int) -> float:
    """The median of a few steps of the plain VQ-GAN, whose trunk both models share; nothing of them is kept."""
    from vqkit.models import create
    from vqkit.objectives import ReconstructionLoss

    recipe = RECIPES["vqgan"]
    source = open_split("scenes", "val")
    pictures, _ = PictureDataset(source, resolution).__getitems__([(0, index) for index in range(recipe.settings.batch_size)])
    with started("auto") as ranks:
        model = create(recipe.model, **dataclasses.asdict(recipe.settings.model)).to(ranks.device).train()
        optimizer = torch.optim.Adam(model.parameters(), recipe.settings.lr)
        images, objective = to_float(pictures, ranks.device), ReconstructionLoss(recipe.settings.pixel_loss)
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            output = model(images)
            (objective(output.reconstruction, images)[0] + output.loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return sorted(seconds[2:])[2]
