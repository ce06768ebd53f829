"""Checkpoints that resume to the same bits: safetensors and JSON, no pickle, each written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.distributed import Ranks

_KEPT = 2
_TENSORS, _NUMBERS = "state.safetensors", "state.json"


def save(run: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer],
         tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Write RUN/checkpoints/step-N, drop all but the last two. Every rank calls it; the first writes.

    Kept are the state of modules and optimisers, `tensors`, the step, the number of ranks and each rank's random number generators.
    """
    generators = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(ranks.device)
    states = {f"rng.{name}.{rank}": state for name, own in generators.items() for rank, state in enumerate(ranks.gather(own))}
    if ranks.first:
        numbers = {"step": step, "ranks": ranks.world, "optimizers": {}}
        for name, module in modules.items():
            states |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in optimizers.items():
            found = optimizer.state_dict()
            numbers["optimizers"][name] = found["param_groups"]
            states |= {f"{name}/{index}/{key}": value for index, entry in found["state"].items() for key, value in entry.items()}
        states |= {f"tensors/{name}": value for name, value in tensors.items()}
        _write(run / "checkpoints", step, states, numbers)
    ranks.barrier()


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted((run / "checkpoints").glob("step-*"), key=step_of)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def restore(checkpoint: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer],
            tensors: dict[str, Tensor], ranks: Ranks) -> int:
    """Give everything its state back, in place, this rank's random numbers last; returns the step.

    Raises ValueError where the checkpoint was made on another number of ranks, whose order and random numbers are not these, or of
    modules whose tensors are not these.
    """
    numbers = json.loads((checkpoint / _NUMBERS).read_text())
    if numbers["ranks"] != ranks.world:
        raise ValueError(f"ranks: the run was trained on {numbers['ranks']}, now {ranks.world}; the same bits need the same number")
    states = load_file(checkpoint / _TENSORS)
    for name, module in modules.items():
        try:
            module.load_state_dict(_below(states, f"{name}/"))
        except RuntimeError as other:
            raise ValueError(f"out: {checkpoint} was made by another architecture of the {name}: {str(other).splitlines()[-1].strip()}") from other
    for name, optimizer in optimizers.items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(states, f"{name}/").items():
            index, _, field = key.partition("/")
            entries.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": entries, "param_groups": numbers["optimizers"][name]})
    for name, value in tensors.items():
        value.copy_(states[f"tensors/{name}"])
    torch.set_rng_state(states[f"rng.cpu.{ranks.rank}"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(states[f"rng.cuda.{ranks.rank}"], ranks.device)
    return numbers["step"]


def write_json(path: Path, content: dict | list) -> None:
    """Replace a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def _below(states: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix):]: value for key, value in states.items() if key.startswith(prefix)}


def _write(folder: Path, step: int, states: dict[str, Tensor], numbers: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".unfinished-*"):
        shutil.rmtree(leftover)
    unfinished, final = folder / f".unfinished-{step}", folder / f"step-{step:08d}"
    unfinished.mkdir()
    # Clones: safetensors refuses tensors that share memory, and model and running mean may share constants.
    plain = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in states.items()}
    save_file(plain, unfinished / _TENSORS)
    (unfinished / _NUMBERS).write_text(json.dumps(numbers))
    for file in unfinished.iterdir():
        _flush(file)
    if final.exists():
        shutil.rmtree(final)
    os.rename(unfinished, final)
    _flush(folder)
    for old in sorted(folder.glob("step-*"), key=step_of)[:-_KEPT]:
        shutil.rmtree(old)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
