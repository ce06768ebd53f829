"""What a run's folder says about it, for those that read it later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training import checkpoint
from training.data.sources import SPLITS, Source, open_split
from training.log import read_log
from vqkit.models import Tokenizer, from_pretrained


@dataclass(frozen=True)
class FinishedRun:
    """A folder that `python -m training tokenizer` wrote, finished or stopped."""

    folder: Path
    config: dict

    @classmethod
    def open(cls, folder: Path) -> FinishedRun:
        """Raises ValueError where the folder is no tokenizer's run, or has no model yet."""
        path = folder / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        if "task" in config:
            raise ValueError(f"run: {folder} is the run of a prior of {config['task']}, expected one of a tokenizer")
        if "recipe" not in config:
            raise ValueError(f"run: {folder} is not a run: expected {path} with a recipe, as training writes it")
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(f"run: {folder} has no model yet: training saves the first after {config.get('save_every')} steps")
        return cls(folder, config)

    @property
    def recipe(self) -> str:
        return self.config["recipe"]

    @property
    def steps(self) -> int:
        """Steps that the saved model has been trained for."""
        found = checkpoint.latest(self.folder)
        return checkpoint.step_of(found) if found else 0

    def model(self) -> Tokenizer:
        """The averaged model, in eval mode, on the CPU."""
        return from_pretrained(self.folder / "model")

    def log(self) -> list[dict]:
        """The lines of log.jsonl."""
        return read_log(self.folder / "log.jsonl")

    def metrics(self) -> dict | None:
        """What `evaluate` wrote, or None."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def unseen(self) -> Source:
        """The test split of the run's data; val, then train, where there is none."""
        for split in reversed(SPLITS):
            try:
                return open_split(self.config["data"], split, seed=self.config["seed"])
            except ValueError as missing:
                if split == SPLITS[0]:
                    raise ValueError(f"run: the pictures of {self.folder} are not there any more: {missing}") from missing
        raise AssertionError("the loop returns or raises")
