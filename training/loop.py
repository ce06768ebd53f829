"""What every training run does, whatever it trains: begin or resume, step, log, save, stop when asked."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training import checkpoint
from training.distributed import Ranks, started
from training.holding import held
from training.log import RunLog, bar_text, progress_bar
from training.recipes import changed_setting
from training.stopping import Stop


class Settings(Protocol):
    """The settings that the loop reads."""

    out: Path
    steps: int
    log_every: int
    save_every: int
    device: str


class TrainingRun(Protocol):
    """All that a run consists of. `advance` is one step and counts it in `step`; `report` writes the log's next line and returns it;
    `broken` names the pictures that could not be read."""

    step: int
    log: RunLog | NoLog

    def restore(self) -> None: ...

    def batches(self) -> Iterator[Any]: ...

    def advance(self, batches: Iterator[Any]) -> None: ...

    def report(self) -> dict: ...

    def save(self) -> None: ...

    def broken(self) -> list[str]: ...


def train_run(
    name: str,
    settings: Settings,
    config: dict,
    with_defaults: Callable[[dict], dict],
    create: Callable[[Ranks], TrainingRun],
) -> Path:
    """Train until `settings.steps`, or go on with a stopped run; returns the run's folder.

    config: what RUN/config.json will hold.  with_defaults: an older config.json with what has been added since.  create: makes the run.
    Raises ValueError for settings that do not fit the data, the model or the run that is to be resumed, and where another process trains
    that run. SIGINT and SIGTERM save a
    checkpoint and raise SystemExit.
    """
    with started(settings.device) as ranks, Stop() as stop, reproducible(ranks.device):
        # In a function of its own: the run, and with it what holds the process group, is gone when the group is closed.
        asked = _run(name, settings, config, with_defaults, create, ranks, stop)
    if asked:
        raise SystemExit(128 + asked)
    return settings.out


def _run(name: str, settings: Settings, config: dict, with_defaults: Callable, create: Callable, ranks: Ranks, stop: Stop) -> int:
    """Train to the end or to a signal; the signal that left the run unfinished, or 0."""
    _check_folder(settings, config, with_defaults, ranks)
    with held(settings.out) if ranks.first else contextlib.nullcontext():
        run = create(ranks)
        try:
            # Noted only now: settings that a model refuses must not bind the folder to them.
            if ranks.first:
                checkpoint.write_json(settings.out / "config.json", config)
            run.restore()
            if run.step < settings.steps:
                return _loop(name, settings, run, ranks, stop)
            say(ranks, f"{settings.out}: {run.step} steps are done already; a larger --steps goes on")
            return 0
        finally:
            run.log.close()


def _loop(name: str, settings: Settings, run: TrainingRun, ranks: Ranks, stop: Stop) -> int:
    batches = run.batches()
    saved_at = run.step
    with progress_bar(name, settings.steps, run.step, ranks.first) as bar:
        while run.step < settings.steps:
            run.advance(batches)
            bar.update()
            if run.step % settings.log_every == 0 or run.step == settings.steps:
                entry = run.report()
                bar.set_postfix(bar_text(entry))
            asked = stop.agreed(ranks)
            if asked or run.step % settings.save_every == 0 or run.step == settings.steps:
                run.save()
                saved_at = run.step
            if asked:
                break
    for broken in run.broken():
        say(ranks, f"skipped, not readable: {broken}")
    if asked and run.step < settings.steps:
        say(ranks, f"{signal.Signals(asked).name}: saved at step {saved_at} of {settings.steps}; the same command goes on from there")
        return asked
    say(ranks, f"{settings.out}: {run.step} steps done, model in {settings.out / 'model'}")
    return 0


def _check_folder(settings: Settings, config: dict, with_defaults: Callable[[dict], dict], ranks: Ranks) -> None:
    """Raise ValueError where the folder holds a run with other settings, or one that went further already."""
    path = settings.out / "config.json"
    if path.exists():
        if found := changed_setting(with_defaults(json.loads(path.read_text())), config):
            raise ValueError(f"{settings.out} is a run with other settings; {found}. Only steps may grow; choose another --out")
        done = checkpoint.latest(settings.out)
        if done is not None and settings.steps < checkpoint.step_of(done):
            raise ValueError(f"steps: {settings.out} has {checkpoint.step_of(done)} steps already, now {settings.steps}")
    # No rank may write the file before the others have looked at it.
    ranks.barrier()


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On the CPU only algorithms that give the same bits every time; on CUDA the fastest."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # It would fill every new tensor before it is written, which costs time; nothing here reads such memory.
        torch.utils.deterministic.fill_uninitialized_memory = False
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    if ranks.world == 1:
        return module
    if ranks.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # Codebooks keep their own buffers equal on all ranks.
    return DistributedDataParallel(module, broadcast_buffers=False)


def synchronised(module: nn.Module | None, last: bool) -> contextlib.AbstractContextManager:
    """Gradients are averaged over the ranks in a step's last pass only."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else contextlib.nullcontext()


def say(ranks: Ranks, text: str) -> None:
    if ranks.first:
        print(text, flush=True)


class NoLog:
    """The log of ranks other than the first."""

    def write(self, entry: dict) -> None:
        """Nothing: the first rank writes."""

    def close(self) -> None:
        """Nothing to close."""
