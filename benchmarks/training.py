"""``python -m benchmarks.training``: the training loop's step of every small recipe without masks, against the same model in plain PyTorch.

Contenders take turns step by step. Writes what was measured to benchmarks/results, complete after every recipe: steps, memory, what
quantisation takes of a step, the share of time spent waiting for data, and what else was tried to make a step faster.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import vqkit
from benchmarks.breakdown import latents_of, measure_share, quantizer_call
from benchmarks.contenders import Unavailable
from benchmarks.gpu import RESULTS, no_cuda
from benchmarks.memory import peak_extra_memory
from benchmarks.recipe_step import OPTIONS, OURS, SMALL, Step, contenders, open_run, pictures, step_of
from benchmarks.results import slug
from benchmarks.timing import take_turns
from benchmarks.training_results import Loading, Quantisation, StepRow, TrainingResults

# A network of strided convolutions, a deep one with normalisation and attention, and a transformer.
OPTIONS_TRIED_ON = ("vqvae", "vqgan", "vit-vqgan")
# Compilation for the processor takes minutes.
_COMPILED_OPTIONS_ON_CPU = ("vqgan",)
_LOADED_STEPS = 12
_NAIVE = "naive quantizer"


class Measurement:
    """Everything about one recipe on one device; `seconds` are for the turns of its contenders."""

    def __init__(self, recipe: str, device: torch.device, seconds: float, compile: bool, results: TrainingResults):
        self.recipe, self.device, self.seconds, self.compile, self.results = recipe, device, seconds, compile, results
        self.images = pictures(recipe, device)

    def all(self) -> None:
        names = contenders(self.recipe, self.device.type)
        steps = self._turns(names, self.results.steps)
        if OURS in steps:
            if steps[OURS].run.model.quantizer is not None:
                self._quantisation(steps)
            self._loading()
        if self.recipe in OPTIONS_TRIED_ON:
            left_out = self.device.type == "cpu" and self.recipe not in _COMPILED_OPTIONS_ON_CPU
            self._turns([OURS, *(name for name in OPTIONS if not (left_out and "compiled" in name))], self.results.options)

    def _turns(self, names: list[str], rows: list[StepRow]) -> dict[str, Step]:
        """Time these contenders' steps; returns those that ran."""
        steps, missing, first = {}, {}, {}
        for name in names:
            if "compile" in name and not self.compile:
                missing[name] = "not run: --no-compile"
                continue
            try:
                steps[name] = step_of(self.recipe, name, self.images)
                # What compiles does so here: a contender that cannot be compiled must not take the others with it.
                began = time.perf_counter()
                steps[name]()
                first[name] = time.perf_counter() - began
                print(f"{self.recipe}: {name}: first step {first[name]:.1f} s", flush=True)
            except Unavailable as reason:
                missing[name] = f"not run: {reason}"
            except Exception as error:
                if name == OURS:
                    raise
                missing[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                steps.pop(name, None)
        timings = take_turns(steps, self.device, self.seconds) if steps else {}
        for name in names:
            row = StepRow(self.recipe, name, len(self.images), reason=missing.get(name), first=first.get(name))
            if name in timings:
                row.note(timings[name], peak_extra_memory(steps[name], self.device.type))
            rows.append(row)
        return steps

    def _quantisation(self, steps: dict[str, Step]) -> None:
        """The quantizers of vqkit's and of the naive step, alone, on what theirs get."""
        latents = latents_of(steps[OURS])
        pair = {name: steps[name] for name in (OURS, _NAIVE) if name in steps}
        timings = take_turns({name: quantizer_call(step, latents) for name, step in pair.items()}, self.device, self.seconds / 4)
        medians = {name: timing.median for name, timing in timings.items()}

        def seconds_of(call: Callable[[], object]) -> float:
            return take_turns({"": call}, self.device, self.seconds / 20)[""].median

        share = measure_share(steps[OURS], latents, seconds_of) if self.device.type == "cpu" else None
        self.results.quantisation.append(Quantisation(self.recipe, medians[OURS], medians.get(_NAIVE), share))

    def _loading(self) -> None:
        """Steps with the loop's own loader, on pictures that nobody has made yet: the first epoch, which waits the most."""
        run = open_run(self.recipe, self.device)
        batches = run.batches()
        try:
            # The first starts the workers.
            run.advance(batches)
            run.meter.read()
            for _ in range(_LOADED_STEPS):
                run.advance(batches)
            read = run.meter.read()
        finally:
            batches.close()
        self.results.loading.append(Loading(self.recipe, read["images_per_second"], read["waiting_for_data"]))


def about(device: torch.device) -> dict[str, str]:
    """What the figures hold for."""
    from vqkit.__main__ import device_line

    return {
        "device": device_line(device),
        "threads": str(torch.get_num_threads()),
        "versions": f"vqkit {vqkit.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.training", *sys.argv[1:]]),
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--only", action="append", metavar="RECIPE", help="only this recipe; may be given again for more")
    parser.add_argument("--seconds", type=float, default=6, help="for the turns of a recipe's contenders (default 6)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile, which takes half of the time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for training-DEVICE.json and .md (default: benchmarks/results)")
    options = parser.parse_args(argv)
    for recipe in options.only or ():
        if recipe not in SMALL:
            parser.error(f"--only: expected one of {', '.join(SMALL)}, got {recipe!r}")
    if options.device not in ("cpu", "cuda"):
        parser.error(f"--device: expected cpu or cuda, got {options.device!r}")
    if options.device == "cuda" and (reason := no_cuda()):
        parser.error(f"--device: {reason}")
    if options.seconds <= 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds:g}")
    return options


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    device = torch.device(options.device)
    if device.type == "cuda":
        # As the loop sets them.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    known = about(device)
    results = TrainingResults(known)
    name = "training-" + slug(known["device"]) + ("-only" if options.only else "")
    began = time.monotonic()
    for recipe in options.only or SMALL:
        Measurement(recipe, device, options.seconds, options.compile, results).all()
        gc.collect()
        results.write(options.out, name)
        print(f"{recipe} is measured, {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(itertools.chain(["", results.markdown(), ""], [f"{options.out / name}.md, .json"])))


if __name__ == "__main__":
    main()
