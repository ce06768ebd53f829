"""A study: a named list of recipes with one backbone, one budget and several seeds, in one table and on one page."""

from __future__ import annotations

import dataclasses
import difflib
import html
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from training import checkpoint
from training.data import PictureDataset, to_float
from training.evaluate import MEAN_COLOR, Evaluation, evaluate
from training.recipes import TokenizerSettings, find_recipe
from training.report import Report, write_report
from training.runs import FinishedRun
from training.tokenizer import train
from vqkit.models import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """One row of a study: a recipe, and what is changed in it, "model.transfer" for a field of the model."""

    label: str
    recipe: str
    changes: dict[str, object] = field(default_factory=dict)

    def settings(self) -> TokenizerSettings:
        """The recipe's settings with the changes."""
        settings = find_recipe(self.recipe).settings
        inner = {name.removeprefix("model."): value for name, value in self.changes.items() if name.startswith("model.")}
        outer = {name: value for name, value in self.changes.items() if not name.startswith("model.")}
        return dataclasses.replace(settings, model=dataclasses.replace(settings.model, **inner), **outer)


def _of(*recipes: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(name, name) for name in recipes)


_VQCT = Candidate("vqct", "vqct")
STUDIES: dict[str, tuple[str, tuple[Candidate, ...]]] = {
    "papers": ("the papers' first tables: codebooks of every kind on one trunk", _of(
        "vqgan", "cvq", "simvq", "vqct", "v2l", "adq", "vqgan+lg", "vqct+lg", "autoencoder")),
    "vqct": ("VQCT's ablations: transfer, parts of speech, prior, dropout", (
        _VQCT,
        *(Candidate(f"transfer={kind}", "vqct", {"model.transfer": kind}) for kind in ("mlp", "gat", "none")),
        *(Candidate(f"parts={kind}", "vqct", {"model.parts": kind}) for kind in ("adjectives", "nouns", "merged")),
        Candidate("no prior", "vqct", {"model.prior": False}),
        Candidate("no dropout", "vqct", {"model.dropout": 0.0}),
    )),
    "codes": ("ViT-VQGAN's ablation: factorised and normalised codes", (
        Candidate("vit-vqgan", "vit-vqgan"),
        Candidate("not normalised", "vit-vqgan", {"model.metric": "l2"}),
        Candidate("length 4", "vit-vqgan", {"model.code_dim": 4}),
        Candidate("not factorised", "vit-vqgan", {"model.code_dim": 192}),
    )),
}
BUDGETS = {
    "tiny": {"resolution": 16, "steps": 4, "batch_size": 4, "save_every": 4, "log_every": 2},
    "short": {"steps": 300, "save_every": 100},
    "full": {"steps": 2000, "save_every": 200},
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which study is made, with how much of what."""

    name: Annotated[str, tyro.conf.Positional]
    """One of the studies that `python -m training study list` prints."""
    data: str = tyro.MISSING
    """A folder or zip with the splits train and test; or "scenes"."""
    out: Path = tyro.MISSING
    """Folder of all runs, of table.md and of report.html. The same command on a stopped study resumes it."""
    budget: Literal["tiny", "short", "full"] = "full"
    """"tiny" only tries whether all runs; "short" is 300 steps, "full" 2,000, for each run."""
    steps: int | None = None
    """Steps of each run, in the place of the budget's."""
    resolution: int | None = None
    """Side of the pictures, in the place of the budget's or the recipes'."""
    seeds: tuple[int, ...] = (0,)
    """Of each candidate, a run each."""
    only: tuple[str, ...] = ()
    """Labels of the candidates to run. Default: all."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        if self.name not in STUDIES:
            near = difflib.get_close_matches(self.name, STUDIES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"study: expected one of {', '.join(STUDIES)}, got {self.name!r}{hint}")
        if not self.seeds:
            raise ValueError("seeds: expected at least one, got none")
        known = [candidate.label for candidate in STUDIES[self.name][1]]
        for label in self.only:
            if label not in known:
                raise ValueError(f"only: expected some of {', '.join(known)}, got {label!r}")

    @property
    def candidates(self) -> list[Candidate]:
        """Those to run, in the study's order."""
        return [candidate for candidate in STUDIES[self.name][1] if candidate.label in (self.only or (candidate.label,))]


def make_study(wanted: Study) -> Path:
    """Train, evaluate and compare; returns the table's path. What is done already is not done again."""
    rows, folders = [], []
    for candidate in wanted.candidates:
        for seed in wanted.seeds:
            folder = wanted.out / f"{candidate.label.replace(' ', '-')}-seed{seed}"
            folders.append(folder)
            rows.append({"label": candidate.label, "seed": seed} | _measured(wanted, candidate, seed, folder))
    resolution = FinishedRun.open(folders[0]).config["resolution"]
    floor = evaluate(Evaluation(run=Path(MEAN_COLOR), data=wanted.data, resolution=resolution, device=wanted.device))
    checkpoint.write_json(wanted.out / "table.json", [*rows, {"label": MEAN_COLOR, "seed": None} | floor])
    text = table(rows, floor)
    path = wanted.out / "table.md"
    path.write_text(text, encoding="utf-8")
    page = write_report(Report(runs=tuple(folders), out=wanted.out / "report.html"), extra_rows=[floor])
    print(f"\n{STUDIES[wanted.name][0]}\n\n{text}\n{path}, {page}")
    return path


def _measured(wanted: Study, candidate: Candidate, seed: int, folder: Path) -> dict:
    settings = candidate.settings()
    changes = dict(BUDGETS[wanted.budget], data=wanted.data, out=folder, seed=seed, device=wanted.device)
    changes |= {name: value for name in ("steps", "resolution") if (value := getattr(wanted, name)) is not None}
    # A discriminator that cannot see so small pictures, or that starts after the last step, takes no part.
    changes |= {"disc_weight": 0.0} if settings.disc_start >= changes["steps"] else {}
    settings = dataclasses.replace(settings, **changes)
    train(candidate.recipe, settings)
    run = FinishedRun.open(folder)
    metrics = run.metrics()
    if metrics is None or metrics["steps"] != run.steps or metrics["data"] != wanted.data:
        metrics = evaluate(Evaluation(run=folder, data=wanted.data, device=wanted.device))
    if "codes_moved" not in metrics and run.model().codebook_sizes:
        metrics["codes_moved"] = codes_moved(run)
        checkpoint.write_json(folder / "metrics.json", metrics)
    return metrics


def codes_moved(run: FinishedRun, learning_rate: float = 1e-3) -> float | None:
    """Fraction of the codes whose vector one training step on one batch of unseen pictures changes (arXiv 2403.10071, fig. 3).

    One step of plain gradient descent on the quantizer's loss, so that no momentum of earlier steps moves anything. None for
    quantizers without code vectors.
    """
    model = run.model().train()
    if not hasattr(model.quantizer, "codes"):
        return None
    dataset = PictureDataset(run.unseen(), run.config["resolution"], fit=run.config["fit"], memory_budget=0)
    pictures, _ = dataset.__getitems__([(0, index) for index in range(min(len(dataset), 8))])
    # The codes of eval mode, so that dropout does not count as movement.
    before = _code_vectors(model.eval())
    model.train()(to_float(pictures, torch.device("cpu"))).loss.backward()
    with torch.no_grad():
        for parameter in model.quantizer.parameters():
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad
    after = _code_vectors(model.eval())
    return (before != after).any(1).double().mean().item()


def _code_vectors(model: Tokenizer) -> torch.Tensor:
    codes = model.quantizer.codes
    widest = max(part.shape[1] for part in codes) if isinstance(codes, tuple) else 0
    parts = [torch.nn.functional.pad(part, (0, widest - part.shape[1])) for part in codes] if isinstance(codes, tuple) else [codes]
    return torch.cat(parts).detach().clone()


_COLUMNS: dict[str, tuple[str, Callable[[dict], float | None], str]] = {
    "psnr": ("PSNR, dB", lambda row: row["psnr"], ".2f"),
    "ssim": ("SSIM", lambda row: row["ssim"], ".4f"),
    "l1": ("L1", lambda row: row["l1"], ".4f"),
    "usage": ("codes used", lambda row: row["codebook_usage"] if row.get("codebook_sizes") else None, ".1%"),
    "perplexity": ("perplexity", lambda row: row["perplexity"] if row.get("codebook_sizes") else None, ".0f"),
    "moved": ("codes moved by a step", lambda row: row.get("codes_moved"), ".1%"),
    "similarity": ("word-code similarity MSE", lambda row: row.get("word_code_similarity_mse"), ".4f"),
    "masked": ("masked words recall@1", lambda row: row.get("masked_word_recall@1"), ".1%"),
    "retrieval": ("captions recall@1", lambda row: row.get("image_to_text_recall@1"), ".1%"),
}


def table(rows: list[dict], floor: dict) -> str:
    """Markdown: a line a candidate, with the mean over its seeds and, of several, half the range; columns that nobody has are left out."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = {label: [row for row in rows if row["label"] == label] for label in labels} | {"mean colour (floor)": [floor]}
    shown = [column for column in _COLUMNS.values() if any(column[1](row) is not None for row in rows)]
    lines = ["| | seeds | " + " | ".join(name for name, _, _ in shown) + " |", "| --- " * (len(shown) + 2) + "|"]
    for label, several in found.items():
        cells = [_cell([value for row in several if (value := of(row)) is not None], form) for _, of, form in shown]
        lines.append(f"| {html.escape(label)} | {len(several) if several[0] is not floor else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    middle = format(statistics.fmean(values), form)
    return middle if len(values) == 1 else f"{middle} ± {(max(values) - min(values)) / 2:{form}}"


def listed() -> str:
    """The studies, a line each, with their candidates."""
    return "\n".join(f"{name:<8} {summary}: {', '.join(c.label for c in candidates)}" for name, (summary, candidates) in STUDIES.items())

