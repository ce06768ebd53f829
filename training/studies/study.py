"""A study: a named list of recipes with one budget and several seeds, one after the other, in one table and on one page."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from training import checkpoint
from training.data.sources import has_captions, open_split
from training.distributed import choose_device
from training.evaluate import MEAN_COLOR, Evaluation, evaluate
from training.holding import held
from training.recipes import TokenizerSettings, changed_setting, to_json, with_defaults
from training.report import show, write_page
from training.runs import FinishedRun
from training.spelling import did_you_mean
from training.studies.candidates import STUDIES, Candidate
from training.studies.claims import claims_html, claims_table, judge
from training.studies.measures import tables, tables_html
from training.studies.metrics import Measured, measure_run
from training.studies.probe import LanguageProbe
from training.tokenizer import train

BUDGETS = {
    "tiny": {"resolution": 16, "steps": 4, "batch_size": 4, "save_every": 4, "log_every": 2, "workers": 0},
    "short": {"steps": 300, "save_every": 100},
    "full": {"steps": 2000, "save_every": 200},
}
PROBE_STEPS = {"tiny": 2, "short": 60, "full": 150}
_PICTURES = 8


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
    """Labels of the candidates to run. Default: all. Others that are finished in the folder already are shown as well."""
    probe_steps: int | None = None
    """Steps of the language probe of each run, in the place of the budget's (2, 60, 150); 0 probes nothing."""
    probe_text_encoder: str = "minilm"
    """The probe's text model, as of --lg.text-encoder."""
    words: str | None = None
    """Of candidates whose codes are words: a file of words, in the place of the training captions'."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""

    def __post_init__(self):
        if self.name not in STUDIES:
            raise ValueError(f"study: expected one of {', '.join(STUDIES)}, got {self.name!r}{did_you_mean(self.name, STUDIES)}")
        if not self.seeds:
            raise ValueError("seeds: expected at least one, got none")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different ones, got {self.seeds}")
        if (self.probe_steps or 0) < 0:
            raise ValueError(f"probe_steps: expected 0 or more, got {self.probe_steps}")
        known = [candidate.label for candidate in STUDIES[self.name].candidates]
        for label in self.only:
            if label not in known:
                raise ValueError(f"only: expected some of {', '.join(known)}, got {label!r}{did_you_mean(label, known)}")

    @property
    def candidates(self) -> list[Candidate]:
        """Those to run, in the study's order."""
        return [candidate for candidate in STUDIES[self.name].candidates if candidate.label in (self.only or (candidate.label,))]

    def folder(self, candidate: Candidate, seed: int) -> Path:
        """Of one run."""
        return self.out / f"{re.sub(r'[^A-Za-z0-9.+=-]+', '-', candidate.label)}-seed{seed}"

    def settings(self, candidate: Candidate, seed: int) -> TokenizerSettings:
        """Of one run: the candidate's, on the study's budget."""
        settings = candidate.settings()
        changes = BUDGETS[self.budget] | {"data": self.data, "out": self.folder(candidate, seed), "seed": seed, "device": self.device}
        changes |= {name: value for name in ("steps", "resolution") if (value := getattr(self, name)) is not None}
        if self.words is not None and hasattr(settings, "words"):
            changes["words"] = self.words
        # A discriminator that starts after the last step takes no part, and so may be one that cannot see so small pictures.
        changes |= {"disc_weight": 0.0} if settings.disc_start >= changes["steps"] else {}
        return dataclasses.replace(settings, **changes)


def make_study(wanted: Study) -> Path:
    """Train, evaluate and compare; returns the table's path. What is done already is not done again.

    Raises ValueError, before anything is trained or written, for a folder that holds another study or a run of another recipe, and for
    guided candidates on data without captions.
    """
    runs = [(candidate, seed, wanted.settings(candidate, seed)) for candidate in wanted.candidates for seed in wanted.seeds]
    _check_folders(wanted, runs)
    probe = _probe(wanted, runs)
    with held(wanted.out):
        return _make(wanted, runs, probe)


def _make(wanted: Study, runs: list[tuple[Candidate, int, TokenizerSettings]], probe: LanguageProbe | None) -> Path:
    checkpoint.write_json(wanted.out / "study.json", {"study": wanted.name} | _basis(wanted))
    for number, (candidate, seed, settings) in enumerate(runs, 1):
        print(f"\n[{number}/{len(runs)}] {candidate.label}, seed {seed}", flush=True)
        began = time.perf_counter()
        train(candidate.recipe, settings)
        measure_run(FinishedRun.open(settings.out), candidate, seed, _basis(wanted), probe, wanted.device)
        print(f"[{number}/{len(runs)}] {candidate.label}, seed {seed}: {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    return _write(wanted, _floor(wanted))


def _basis(wanted: Study) -> dict:
    """What makes runs comparable: those of one folder that have it in common are shown together."""
    settings = wanted.settings(wanted.candidates[0], wanted.seeds[0])
    return {"data": wanted.data, "steps": settings.steps, "resolution": settings.resolution}


def _check_folders(wanted: Study, runs: list[tuple[Candidate, int, TokenizerSettings]]) -> None:
    if (wanted.out / "downstream.json").is_file():
        raise ValueError(f"out: {wanted.out} holds downstream tasks; choose another --out")
    path = wanted.out / "study.json"
    if path.is_file() and (found := json.loads(path.read_text()).get("study")) != wanted.name:
        raise ValueError(f"out: {wanted.out} holds the study {found!r}, now {wanted.name!r}; choose another --out")
    for candidate, _, settings in runs:
        path = settings.out / "config.json"
        if path.is_file():
            before = with_defaults(json.loads(path.read_text()), candidate.recipe, settings)
            if changed := changed_setting(before, to_json(candidate.recipe, settings)):
                raise ValueError(f"out: {settings.out} is a run with other settings; {changed}. Choose another --out, or remove that run")


def _probe(wanted: Study, runs: list[tuple[Candidate, int, TokenizerSettings]]) -> LanguageProbe | None:
    """A probe where there are captions to ask for. Raises ValueError where guided candidates lack them."""
    seen, unseen = open_split(wanted.data, "train"), open_split(wanted.data, "test")
    captioned = has_captions(seen) and has_captions(unseen)
    guided = [candidate.label for candidate, _, settings in runs if settings.guidance]
    if guided and not captioned:
        raise ValueError(f"data: {wanted.data} has no captions, which {', '.join(dict.fromkeys(guided))} need; "
                         f"name the others with --only, or give data whose metadata.jsonl has \"captions\"")
    steps = PROBE_STEPS[wanted.budget] if wanted.probe_steps is None else wanted.probe_steps
    if not steps or not captioned:
        return None
    settings = runs[0][2]
    return LanguageProbe(seen, unseen, settings.resolution, settings.fit, steps, choose_device(wanted.device), wanted.probe_text_encoder)


def _floor(wanted: Study) -> dict:
    """The metrics of every picture's mean colour, measured once."""
    basis, folder = _basis(wanted), wanted.out / MEAN_COLOR
    path = folder / "metrics.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if (found["data"], found["resolution"]) == (basis["data"], basis["resolution"]):
            return found
    return evaluate(Evaluation(run=Path(MEAN_COLOR), data=wanted.data, resolution=basis["resolution"], device=wanted.device, out=folder))


def _write(wanted: Study, floor: dict) -> Path:
    """table.json, table.md and report.html of all runs in the folder that are finished on the same basis."""
    study, basis, done = STUDIES[wanted.name], _basis(wanted), []
    for candidate in study.candidates:
        # "vqgan-seed0" is not of "vqgan+lg": the slug ends where -seed begins.
        for path in sorted(wanted.folder(candidate, 0).parent.glob(f"{wanted.folder(candidate, 0).name.removesuffix('0')}[0-9]*")):
            if (measured := Measured.read(path)) is not None and measured.basis == basis and measured.label == candidate.label:
                done.append((candidate, path, measured))
    rows = [row for _, _, measured in done for row in measured.rows]
    judged = [judge(claim, rows) for claim in study.claims]
    checkpoint.write_json(wanted.out / "table.json", [*rows, {"label": MEAN_COLOR, "seed": None} | floor])
    how = (f"{basis['steps']:,} steps a run at {basis['resolution']}x{basis['resolution']} pixels, data {Path(basis['data']).name}; "
           f"torch {torch.__version__}, {choose_device(wanted.device).type}, {torch.get_num_threads()} threads; means over the seeds ± half "
           "their range")
    verdicts = "A claim holds where it does for every seed of one against every seed of the other; of one seed a side nothing is decided."
    text = f"# {study.summary[0].upper()}{study.summary[1:]}\n\n{how}.\n\n{tables(rows, floor)}"
    text += f"\n## Claims\n\n{verdicts}\n\n{claims_table(judged)}" if judged else ""
    path = wanted.out / "table.md"
    path.write_text(text, encoding="utf-8")
    first = {candidate.label: folder for candidate, folder, _ in reversed(done)}
    shown = [show(label, FinishedRun.open(folder), _PICTURES) for label, folder in reversed(first.items())]
    opening = f"<p class='quiet'>{html.escape(how)}. Pictures, curves and words below are of the first seed.</p>{tables_html(rows, floor)}"
    opening += f"<h2>Claims</h2><p class='quiet'>{verdicts}</p>{claims_html(judged)}" if judged else ""
    page = write_page(wanted.out / "report.html", study.summary, shown, opening)
    print(f"\n{text}\n{path}, {page}")
    return path
