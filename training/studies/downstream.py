"""Downstream tasks: what the codes of several tokenizers are good for, by one prior a task, of one recipe and budget, in one table and page."""

from __future__ import annotations

import dataclasses
import html
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from training import checkpoint
from training.data.sources import open_split
from training.holding import held
from training.pictures import embedded
from training.priors.evaluate import PriorEvaluation, evaluate_prior
from training.priors.generate import Generation, generate
from training.priors.recipes import PriorSettings, find_prior_recipe
from training.priors.train import train_prior
from training.report import write_html
from training.runs import FinishedRun
from training.studies.claims import claims_html, claims_table, judge
from training.studies.measures import tables, tables_html
from training.studies.task_claims import TASK_CLAIMS
from training.tasks import find_task, task_names


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """Which tokenizers serve which tasks, with how much training."""

    tokenizers: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs of tokenizers, of any recipe and data. Two of one recipe are two seeds of it."""
    data: str = tyro.MISSING
    """A folder or zip with the splits train and test; or "scenes"."""
    out: Path = tyro.MISSING
    """Folder of all priors, of table.md and of report.html. The same command on a stopped study resumes it."""
    tasks: tuple[str, ...] = ()
    """Names that `python -m training tasks` lists. Default: all that the data has what it takes for."""
    recipe: str = "small"
    """Of all priors."""
    steps: int = 600
    """Optimiser steps of each prior."""
    max_pictures: int | None = None
    """At most so many pictures of the train split."""
    pictures: int | None = None
    """At most so many pictures of the test split."""
    shown: int = 8
    """Examples of each task and tokenizer on the page; 0 shows none."""
    inception_weights: Path | None = None
    """pytorch-fid's weights, for FID. Without them pictures are compared by a network trained on the data here, whose distance is no FID."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the priors' training; auto is bf16 where the device computes it fast."""
    seed: int = 0
    """Of the priors: weights, order, dropout and what is drawn."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        if not self.tokenizers:
            raise ValueError("tokenizers: expected at least one run, got none")
        names = [folder.name for folder in self.tokenizers]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tokenizers: expected folders of different names, got {repeated!r} twice")
        for task in self.tasks:
            find_task(task)
        find_prior_recipe(self.recipe)
        for name in ("steps", "max_pictures", "pictures"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.shown < 0:
            raise ValueError(f"shown: expected 0 or more, got {self.shown}")

    @property
    def basis(self) -> dict:
        """What makes rows comparable: a folder holds one."""
        return json.loads(json.dumps({name: getattr(self, name) for name in (
            "data", "recipe", "steps", "max_pictures", "pictures", "inception_weights", "precision", "seed")}, default=str))

    def prior(self, tokenizer: Path, task: str) -> Path:
        """The folder of the prior that serves a task."""
        return self.out / tokenizer.name / (find_task(task).priors_of or task)

    def settings(self, tokenizer: Path, task: str, codes_from: Path | None) -> PriorSettings:
        """Of that prior's training."""
        return dataclasses.replace(
            find_prior_recipe(self.recipe).settings, tokenizer=tokenizer, data=self.data, out=self.prior(tokenizer, task), codes_from=codes_from,
            steps=self.steps, max_pictures=self.max_pictures, seed=self.seed, precision=self.precision,
            device=self.device)


def run_downstream(wanted: Downstream) -> Path:
    """Train, evaluate and compare; returns the table's path. What is done already is not done again.

    Raises ValueError, before anything is trained or written, for a folder that is no tokenizer's run, for data that lack what a task that
    was asked for needs, and for an `out` that holds rows of another budget.
    """
    runs = [FinishedRun.open(folder) for folder in wanted.tokenizers]
    tasks = _tasks(wanted)
    _check_folder(wanted)
    with held(wanted.out):
        return _run(wanted, runs, tasks)


def _run(wanted: Downstream, runs: list[FinishedRun], tasks: list[str]) -> Path:
    checkpoint.write_json(wanted.out / "downstream.json", wanted.basis)
    number, total = 0, len(runs) * len(tasks)
    for run in runs:
        row, codes_from = _row(wanted, run), None
        for task in tasks:
            number, began = number + 1, time.perf_counter()
            print(f"\n[{number}/{total}] {run.folder.name}, {task}", flush=True)
            if not any(key.startswith(f"{task}/") for key in row):
                folder = train_prior(find_task(task).priors_of or task, wanted.recipe, wanted.settings(run.folder, task, codes_from))
                row |= {f"{task}/{name}": value for name, value in _measured(wanted, folder, task).items()}
                checkpoint.write_json(wanted.out / run.folder.name / "row.json", row)
            codes_from = wanted.prior(run.folder, task)
            _draw(wanted, run, task)
            print(f"[{number}/{total}] {run.folder.name}, {task}: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    return _write(wanted)


def _tasks(wanted: Downstream) -> list[str]:
    """Those asked for, or all that the training split has what it takes for, with a line about each other one."""
    source, found = open_split(wanted.data, "train", seed=wanted.seed), []
    for task in wanted.tasks or task_names():
        try:
            find_task(task).learn(source)
        except ValueError as lacking:
            if wanted.tasks:
                raise
            print(f"left out: {task}: {lacking}")
        else:
            found.append(task)
    return found


def _check_folder(wanted: Downstream) -> None:
    if (wanted.out / "study.json").is_file():
        raise ValueError(f"out: {wanted.out} holds a study of tokenizers; choose another --out")
    path = wanted.out / "downstream.json"
    if path.is_file():
        before = json.loads(path.read_text())
        for name, now in wanted.basis.items():
            if before.get(name) != now:
                raise ValueError(f"out: {wanted.out} holds priors of {name} {before.get(name)!r}, now {now!r}; choose another --out")


def _row(wanted: Downstream, run: FinishedRun) -> dict:
    """What is measured of a tokenizer so far. Raises ValueError where another one of the same name was."""
    path = wanted.out / run.folder.name / "row.json"
    own = {"label": run.recipe, "seed": run.config["seed"], "steps": run.steps, "tokenizer": str(run.folder.resolve())}
    found = json.loads(path.read_text()) if path.is_file() else own
    for name, value in own.items():
        if found[name] != value:
            raise ValueError(f"tokenizers: {path.parent} holds priors of a tokenizer of {name} {found[name]!r}, {run.folder} has {value!r}; "
                             "choose another --out")
    return found


def _measured(wanted: Downstream, folder: Path, task: str) -> dict[str, float]:
    networks = {"feature_net": wanted.out / "feature_nets"} if wanted.inception_weights is None else {"inception_weights": wanted.inception_weights}
    metrics = evaluate_prior(PriorEvaluation(
        run=folder, pictures=wanted.pictures, task=task, seed=wanted.seed, device=wanted.device,
        **networks if find_task(task).gives == "picture" else {}))
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def _draw(wanted: Downstream, run: FinishedRun, task: str) -> None:
    """Examples as a picture, once. The linear probe has none."""
    path = wanted.out / run.folder.name / f"{task}.png"
    if wanted.shown and not path.is_file() and find_task(task).name != "linear-probe":
        generate(Generation(run=wanted.prior(run.folder, task), out=path, task=task, count=wanted.shown, seed=wanted.seed, device=wanted.device))


def _write(wanted: Downstream) -> Path:
    """table.json, table.md and report.html of all tokenizers in the folder."""
    folders = [wanted.out / folder.name for folder in wanted.tokenizers]
    folders += [path.parent for path in sorted(wanted.out.glob("*/row.json")) if path.parent not in folders]
    rows = [json.loads((folder / "row.json").read_text()) for folder in folders]
    judged = [found for claim in TASK_CLAIMS if (found := judge(claim, rows)).verdict != "not measured"]
    checkpoint.write_json(wanted.out / "table.json", rows)
    settings = find_prior_recipe(wanted.recipe).settings
    how = (f"A prior a task, recipe {wanted.recipe}, {wanted.steps:,} steps of {settings.batch_size} each, data {Path(wanted.data).name}; torch "
           f"{torch.__version__}, {torch.get_num_threads()} threads; means over tokenizers of one recipe ± half their range.")
    verdicts = "A claim holds where it does for every tokenizer of one recipe against every one of the other; of one a side nothing is decided."
    text = f"# Downstream tasks\n\n{how}\n\n{tables(rows)}" + (f"\n## Claims\n\n{verdicts}\n\n{claims_table(judged)}" if judged else "")
    path = wanted.out / "table.md"
    path.write_text(text, encoding="utf-8")
    claims = f"<h2>Claims</h2><p class='quiet'>{verdicts}</p>{claims_html(judged)}" if judged else ""
    page = write_html(wanted.out / "report.html", "Downstream tasks", how, [tables_html(rows), claims, *_galleries(folders)])
    print(f"\n{text}\n{path}, {page}")
    return path


def _galleries(folders: list[Path]) -> list[str]:
    sections = []
    for task in task_names():
        drawn = [(folder.name, folder / f"{task}.png") for folder in folders if (folder / f"{task}.png").is_file()]
        figures = "".join(_figure(name, path) for name, path in drawn)
        if figures:
            sections.append(f"<h2>{task}</h2><div class='side'>{figures}</div>")
    return sections


def _figure(name: str, path: Path) -> str:
    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return f'<figure class="gallery"><img src="{embedded(picture)}" alt="{html.escape(name)}"><figcaption>{html.escape(name)}</figcaption></figure>'
