"""What the folder of a prior's run holds, for those that read it later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training import checkpoint
from training.log import read_log
from training.priors.codes import PictureFormat
from training.tasks import find_task
from training.tasks.task import Task
from vqkit.models import Tokenizer, TokenPrior, from_pretrained

TASK = "task.json"


@dataclass(frozen=True)
class FinishedPrior:
    """A folder that `python -m training prior` wrote, finished or stopped."""

    folder: Path
    config: dict

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a folder is a prior's run, with a model or not yet."""
        path = folder / "config.json"
        return path.is_file() and "task" in json.loads(path.read_text())

    @classmethod
    def open(cls, folder: Path) -> FinishedPrior:
        """Raises ValueError where the folder is no prior's run, or has no model yet."""
        if not cls.is_one(folder):
            raise ValueError(f"run: {folder} is not the run of a prior: expected {folder / 'config.json'} with a task, as training writes it")
        config = json.loads((folder / "config.json").read_text())
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(f"run: {folder} has no model yet: training saves the first after {config.get('save_every')} steps")
        return cls(folder, config)

    @property
    def steps(self) -> int:
        """Steps that the saved model has been trained for."""
        found = checkpoint.latest(self.folder)
        return checkpoint.step_of(found) if found else 0

    def task(self) -> Task:
        """The task with what its training split taught."""
        return read_task(self.folder)

    def prior(self) -> TokenPrior:
        """The model, in eval mode, on the CPU."""
        return from_pretrained(self.folder / "model")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained on, in eval mode, on the CPU."""
        return from_pretrained(self.folder / "tokenizer")

    def log(self) -> list[dict]:
        """The lines of log.jsonl."""
        return read_log(self.folder / "log.jsonl")


def write_task(folder: Path, task: Task) -> None:
    """Note the task, what it learned and what pictures are, in RUN/task.json."""
    checkpoint.write_json(folder / TASK, {"task": task.name, "pictures": vars(task.pictures), "learned": task.learned})


def read_task(folder: Path) -> Task:
    """The task of a run."""
    noted = json.loads((folder / TASK).read_text())
    pictures = noted["pictures"] | {name: tuple(noted["pictures"][name]) for name in ("sizes", "selections")}
    return find_task(noted["task"])(PictureFormat(**pictures), noted["learned"])
