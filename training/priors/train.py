"""The training of priors, to be read from `train_prior` downwards."""

from __future__ import annotations

import dataclasses
import filecmp
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import vqkit.models
from training import checkpoint
from training.data.batches import TrainingOrder
from training.data.sources import open_split
from training.distributed import Ranks, choose_precision
from training.log import Meter, RunLog
from training.loop import NoLog, parallel, say, train_run
from training.optimization import create_optimizer, set_rate
from training.priors.codes import PictureFormat, encode_pictures, read_codes
from training.priors.recipes import PRIOR_RECIPES, PriorSettings, to_json
from training.priors.runs import FinishedPrior, read_task, write_task
from training.runs import FinishedRun
from training.tasks import find_task
from training.tasks.task import Examples
from vqkit.models import from_pretrained

CODES = Path("codes", "train.safetensors")


def train_prior(task: str, recipe: str, settings: PriorSettings) -> Path:
    """Train a prior for a task, or go on with a stopped run; returns the run's folder. Raises as `train_run` does."""
    config = to_json(task, recipe, settings)
    return train_run(f"{task} ({recipe})", settings, config, lambda before: {**config, **before}, lambda ranks: PriorRun(task, recipe, settings, ranks))


class PriorRun:
    """All that a training run consists of; `advance` is one step."""

    def __init__(self, task: str, recipe: str, settings: PriorSettings, ranks: Ranks):
        self.settings, self.ranks, self.step = settings, ranks, 0
        source = open_split(settings.data, "train", seed=settings.seed)
        if ranks.first and not (settings.out / "config.json").exists():
            self._begin(task, source)
        ranks.barrier()
        self.task = read_task(settings.out)
        self.examples = self._examples(source)
        torch.manual_seed(settings.seed)
        prior = vqkit.models.create_prior(PRIOR_RECIPES[recipe].prior, self.task.segments, **dataclasses.asdict(settings.model))
        self.model = prior.to(ranks.device).train()
        self.optimizer = create_optimizer([self.model], settings, settings.weight_decay)
        self.parallel = parallel(self.model, ranks)
        precision = choose_precision(settings.precision, ranks.device)
        self.autocast = lambda: torch.autocast(ranks.device.type, precision, enabled=precision != torch.float32)
        self.meter = Meter()
        self.log: RunLog | NoLog = NoLog()
        self._say_what_is_trained(task, recipe, precision)

    def _begin(self, task: str, source) -> None:
        """Lay down the tokenizer, and the task with what the split teaches it; a folder without config.json holds nothing to keep."""
        settings, kind = self.settings, find_task(task)
        run = FinishedRun.open(settings.tokenizer)
        pictures = PictureFormat.of(run.model(), run.config["resolution"], run.config["fit"])
        learned = kind.learn(source)
        _clear_leftovers(settings.out, {"tokenizer": {path.name for path in (run.folder / "model").iterdir()}, "codes": {CODES.name}})
        settings.out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run.folder / "model", settings.out / "tokenizer")
        write_task(settings.out, kind(pictures, learned))

    def _examples(self, source) -> Examples:
        """Encoded by the first rank, and read by all."""
        settings, kept = self.settings, self.settings.out / CODES
        if self.ranks.first:
            if settings.codes_from is not None and not kept.is_file():
                _take_codes(settings, kept)
            tokenizer = from_pretrained(settings.out / "tokenizer").to(self.ranks.device)
            encode_pictures(tokenizer, source.limited(settings.max_pictures), self.task.pictures, kept)
        self.ranks.barrier()
        codes = read_codes(kept)
        return Examples(self.task.rows(source.limited(len(codes.codes))), codes)

    def restore(self) -> None:
        """Take up the newest checkpoint, where there is one, and open the log after it."""
        found = checkpoint.latest(self.settings.out)
        if found is not None:
            self.step = checkpoint.restore(found, {"model": self.model}, {"optimizer": self.optimizer}, {}, self.ranks)
            say(self.ranks, f"{self.settings.out}: goes on from step {self.step}")
        self.ranks.barrier()
        if self.ranks.first:
            self.log = RunLog(self.settings.out / "log.jsonl", self.step)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """All batches from this step on."""
        settings, ranks = self.settings, self.ranks
        order = TrainingOrder(len(self.examples), settings.batch_size, settings.seed, first=self.step, last=settings.steps, rank=ranks.rank,
                              world=ranks.world)
        for keys in order:
            yield self.examples.batch(torch.tensor([number for _, number in keys]), ranks.device)

    def advance(self, batches: Iterator[dict[str, Tensor]]) -> None:
        """One step."""
        began = time.perf_counter()
        tokens = next(batches)
        waited = time.perf_counter() - began
        set_rate(self.settings.rate_at(self.step), self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss, terms = self.parallel(tokens)
        loss.backward()
        if self.settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        count = self.settings.batch_size * self.ranks.world
        self.meter.add({f"{name}_nats": term for name, term in terms.items()}, count, waited)
        self.step += 1

    def report(self) -> dict:
        """Write the log's next line and return it. Raises FloatingPointError where a loss is no longer a number."""
        means = self.meter.read()
        summed = self.ranks.sum(torch.tensor(list(means.values()), dtype=torch.float64)) / self.ranks.world
        entry = {"step": self.step, **dict(zip(means, summed.tolist()))}
        # what the meter counts here are sequences
        entry["tokens_per_second"] = entry.pop("images_per_second") * self.model.layout.length
        for name, value in entry.items():
            if value != value:
                raise FloatingPointError(f"{name} is not a number at step {self.step}; a lower --lr may help")
        self.log.write(entry)
        return entry

    def save(self) -> None:
        """A checkpoint, and the model on its own in RUN/model."""
        checkpoint.save(self.settings.out, self.step, {"model": self.model}, {"optimizer": self.optimizer}, {}, self.ranks)
        if self.ranks.first:
            self.model.save_pretrained(self.settings.out / "model")

    def broken(self) -> list[str]:
        """How many pictures could not be read."""
        count = int((~read_codes(self.settings.out / CODES).readable).sum())
        return [f"{count} pictures"] if count else []

    def _say_what_is_trained(self, task: str, recipe: str, precision: torch.dtype) -> None:
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        where = f"{self.ranks.device}, {str(precision).removeprefix('torch.')}"
        layout = ", ".join(f"{segment.name} {segment.length}" + ("" if segment.streams == 1 else f" x {segment.streams}")
                           + (" (predicted)" if segment.predicted else "") for segment in self.model.layout.segments)
        say(self.ranks, f"{task}, {recipe}: {millions:.1f} M parameters, {where}")
        say(self.ranks, f"sequence: {layout}; {len(self.examples):,} examples")


def _clear_leftovers(out: Path, own: dict[str, set[str]]) -> None:
    """Remove what a stopped beginning left in these folders. Raises ValueError where one holds anything else, and removes nothing then."""
    for name, files in own.items():
        foreign = sorted(path.name for path in (out / name).glob("*") if path.name not in files and not path.name.startswith("."))
        if foreign:
            raise ValueError(f"out: {out / name} holds {foreign[0]}, which a prior's run does not; choose another --out")
    for name in own:
        shutil.rmtree(out / name, ignore_errors=True)


def _take_codes(settings: PriorSettings, kept: Path) -> None:
    """Copy the codes of another run. Raises ValueError where they are not those that this run would find."""
    other = FinishedPrior.open(settings.codes_from)
    for name, now in (("data", settings.data), ("max_pictures", settings.max_pictures), ("seed", settings.seed)):
        # the seed chooses pictures of the built-in scenes only
        if other.config[name] != now and (name != "seed" or settings.data == "scenes"):
            raise ValueError(f"codes_from: {other.folder} has the {name} {other.config[name]!r}, this run {now!r}")
    weights = [folder / "tokenizer" / "model.safetensors" for folder in (other.folder, settings.out)]
    if not filecmp.cmp(*weights, shallow=False):
        raise ValueError(f"codes_from: {other.folder} is of another tokenizer than {settings.tokenizer}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.copyfile(other.folder / CODES, unfinished)
    os.replace(unfinished, kept)
