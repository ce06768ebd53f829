"""What a study measures of a finished run beyond its evaluation, kept beside it in study.json."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from training import checkpoint
from training.data.batches import PictureDataset, to_float
from training.data.sources import open_split
from training.distributed import started
from training.evaluate import Evaluation, evaluate
from training.rates import measure_rates
from training.runs import FinishedRun
from training.studies.candidates import Candidate
from training.studies.code_movement import codes_moved
from training.studies.probe import LanguageProbe, NoTextModel


@dataclass(frozen=True)
class Measured:
    """What study.json of a run says: whose it is, on which data, steps and resolution, and its rows of the tables."""

    label: str
    basis: dict
    rows: list[dict]

    @classmethod
    def read(cls, folder: Path) -> Measured | None:
        """None where the run is not finished."""
        path = folder / "study.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        return cls(found["label"], found["basis"], _rows(found))


def measure_run(run: FinishedRun, candidate: Candidate, seed: int, basis: dict, probe: LanguageProbe | None, device: str) -> None:
    """Evaluate a run and write its study.json, without what is there already.

    codes_moved: see `code_movement`.  steps_per_second: the median over the lines of the log.  rates: metrics at each of the
    candidate's rates.  probe: the numbers of the probe, where there is one.
    """
    path = run.folder / "study.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("basis") != basis or found.get("label") != candidate.label:
        found = {"label": candidate.label, "seed": seed, "basis": basis}
    metrics = run.metrics()
    if metrics is None or (metrics["steps"], metrics["data"], metrics["split"], metrics["resolution"]) != (
            run.steps, basis["data"], "test", basis["resolution"]):
        metrics = evaluate(Evaluation(run=run.folder, data=basis["data"], device=device))
    dataset = PictureDataset(open_split(basis["data"], "test", seed=seed), basis["resolution"], fit=run.config["fit"])
    found["metrics"] = metrics
    found["steps_per_second"] = _speed(run)
    with started(device) as ranks:
        if "codes_moved" not in found:
            pictures, _ = dataset.__getitems__([(0, 0)])
            found["codes_moved"] = codes_moved(run.model(), to_float(pictures, "cpu")) if run.model().codebook_sizes else None
        if "rates" not in found or list(map(str, candidate.rates)) != list(found["rates"]):
            found["rates"] = measure_rates(run.model(), candidate.rates, dataset, ranks)
    if probe is not None and found.get("probe_of") != probe.describe():
        try:
            found |= {"probe": probe.measure(run.model()), "probe_of": probe.describe()}
        except NoTextModel as missing:
            print(f"not probed: {missing}")
    checkpoint.write_json(path, found)


def _rows(found: dict) -> list[dict]:
    """The run's own row, and one a rate."""
    own = found["metrics"] | found.get("probe", {}) | {name: found[name] for name in ("seed", "codes_moved", "steps_per_second")}
    rates = [{"label": f"{found['label']} at {rate}", "seed": found["seed"]} | metrics for rate, metrics in found["rates"].items()]
    return [{"label": found["label"]} | own, *rates]


def _speed(run: FinishedRun) -> float | None:
    """Optimiser steps a second, the median over the lines of the log; None without one."""
    speeds = [line["images_per_second"] for line in run.log() if "images_per_second" in line]
    return statistics.median(speeds) / (run.config["batch_size"] * run.config["accumulation"]) if speeds else None
