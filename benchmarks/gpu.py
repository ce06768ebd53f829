"""``python -m benchmarks.gpu``: time every operator, the quantizer and a training step on a CUDA device.

benchmarks/gpu.sh builds and tests first. ``--device cpu`` runs tiny shapes by the wall clock: it shows that the command works, not
how fast anything is.
"""

import argparse
import datetime
import gc
import os
import platform
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

import vqkit
from benchmarks import floors
from benchmarks.cases import Case, Contender
from benchmarks.catalogue import catalogue
from benchmarks.contenders import Unavailable
from benchmarks.memory import peak_extra_memory
from benchmarks.results import OURS, Results, Row, slug
from benchmarks.timing import measure, sets_needed

RESULTS = Path(__file__).parent / "results"
# Seconds of repeated calls a row.
_ROW = {"cuda": 0.4, "cpu": 0.01}
# What of the free memory a contender may fill.
_SHARE = 0.95


def no_cuda() -> str | None:
    """Why there is no CUDA device to measure; None where there is one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"no CUDA device: PyTorch {torch.__version__} was built without CUDA; install a CUDA build of it"
    return f"no CUDA device: PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees none; does nvidia-smi, is CUDA_VISIBLE_DEVICES right?"


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def too_large(contender: Contender, device: torch.device) -> str | None:
    """Why the contender does not fit in the memory, or None."""
    free = free_memory(device)
    if contender.scratch <= _SHARE * free:
        return None
    return f"not run: needs at least {contender.scratch / 2**30:.1f} GiB beside its inputs, {free / 2**30:.1f} GiB are free"


class Run:
    """All cases on one device until the time is up; ``rows`` exist before they are measured, and say so."""

    def __init__(self, device: torch.device, cases: list[Case], results: Results, folder: Path, name: str, deadline: float):
        self.device, self.cases, self.results, self.folder, self.name = device, cases, results, folder, name
        self.deadline = deadline
        results.rows = [Row(case.name, contender.name, case.part_of) for case in cases for contender in case.contenders]

    def all(self) -> None:
        self.results.write(self.folder, self.name)
        self.results.ceilings = floors.measured_ceilings(self.device)
        rows = iter(self.results.rows)
        for case in self.cases:
            mine = [next(rows) for _ in case.contenders]
            if time.monotonic() > self.deadline:
                break
            torch.manual_seed(0)
            try:
                sets = self._sets(case)
            except torch.OutOfMemoryError as error:
                for row in mine:
                    row.reason = f"not run: no memory for the inputs: {_first_line(error)}"
                continue
            for contender, row in zip(case.contenders, mine):
                if time.monotonic() > self.deadline:
                    break
                self._one(case, contender, row, sets)
                self.results.write(self.folder, self.name)
                print(f"{row.case}: {row.contender}: {row.reason or f'{row.median * 1e3:.4g} ms'}", flush=True)
                if row.failed and "CUDA error" in row.reason:
                    raise SystemExit(f"the device is unusable after {row.contender} in {row.case}: {row.reason}")

    def _sets(self, case: Case) -> list[tuple]:
        first = case.make(self.device)
        size = sum(value.nbytes for value in first if isinstance(value, torch.Tensor))
        count = sets_needed(size, self.device) if case.rotate else 1
        return [first, *(case.make(self.device) for _ in range(count - 1))]

    def _one(self, case: Case, contender: Contender, row: Row, sets: list[tuple]) -> None:
        """Measure one row, or note why not. What others' code raises is a reason too; what ours raises is a failure."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        row.reason = too_large(contender, self.device)
        if row.reason:
            return
        # On a GPU no other backend may stand in for the one that is meant.
        ours = contender.name.startswith(OURS)
        backend = vqkit.use_backend("triton") if ours and self.device.type == "cuda" else nullcontext()
        try:
            with backend:
                self._measure(case, contender, row, sets)
        except Unavailable as reason:
            row.reason = f"not run: {reason}"
        except torch.OutOfMemoryError as error:
            row.reason = f"ran out of memory: {_first_line(error)}"
        except ModuleNotFoundError as error:
            row.reason = f"not run: {error}"
        except Exception as error:
            row.reason, row.failed = f"failed: {type(error).__name__}: {_first_line(error)}", ours

    def _measure(self, case: Case, contender: Contender, row: Row, sets: list[tuple]) -> None:
        calls = [contender.prepare(*inputs) for inputs in sets]
        timing = measure(calls, self.device, _ROW[self.device.type])
        for name, value in asdict(timing).items():
            setattr(row, name, value)
        results = []
        row.extra_memory = peak_extra_memory(lambda: results.append(calls[0]()), self.device.type)
        row.floor = self.results.ceilings.floor(*case.works(*sets[0])) or None
        if case.wrong:
            row.wrong = case.wrong(sets[0], results[0])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _about() -> dict:
    from vqkit.__main__ import report

    versions = [f"vqkit {vqkit.__version__}", f"PyTorch {torch.__version__}", f"CUDA {torch.version.cuda}", _triton(), f"Python {platform.python_version()}"]
    return {
        "versions": ", ".join(versions),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "precision": "float32 products of PyTorch without TF32; deterministic algorithms only where a row says so",
        "doctor": report(),
    }


def _triton() -> str:
    from vqkit.kernels import probe

    return f"Triton {probe.triton.__version__}" if probe.triton else "no Triton"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu for tiny shapes")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only cases with this text in their name; may be given again for more")
    parser.add_argument("--list", action="store_true", help="print the cases and their contenders, measure nothing")
    parser.add_argument("--seconds", type=float, default=240, help="start no row after this many seconds (default 240)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for DEVICE.json and DEVICE.md (default: benchmarks/results)")
    options = parser.parse_args(argv)
    try:
        options.device = torch.device(options.device)
    except RuntimeError as error:
        parser.error(f"--device: {_first_line(error)}")
    if options.device.type not in ("cuda", "cpu"):
        parser.error(f"--device: expected cuda, cuda:N or cpu, got {options.device}")
    if options.seconds <= 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds:g}")
    cases = catalogue(options.device.type)
    if options.only:
        names = [case.name for case in cases]
        for text in options.only:
            if not any(text.lower() in name.lower() for name in names):
                parser.error(f"--only: no case has {text!r} in its name; --list prints them")
        cases = [case for case in cases if any(text.lower() in case.name.lower() for text in options.only)]
    options.cases = cases
    if not options.list and options.device.type == "cuda":
        if reason := no_cuda():
            parser.error(f"--device: {reason}")
        if (options.device.index or 0) >= torch.cuda.device_count():
            parser.error(f"--device: expected one of {torch.cuda.device_count()} CUDA devices, got {options.device}")
    return options


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 where a row of vqkit's own failed; 2 for arguments that do not fit, no CUDA among them."""
    deadline = time.monotonic()
    options = arguments(argv)
    if options.list:
        for case in options.cases:
            print(f"{case.name}: {'; '.join(contender.name for contender in case.contenders)}")
        return 0
    torch.set_float32_matmul_precision("highest")
    device = options.device
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU {platform.machine()}, tiny shapes"
    results = Results(name, _about())
    # A part of the cases does not replace a whole run.
    stem = slug(name) + ("-only" if options.only else "")
    run = Run(device, options.cases, results, options.out, stem, deadline + options.seconds)
    # Every measurement of memory collects garbage first: what is imported need not be looked through again.
    gc.freeze()
    try:
        run.all()
    finally:
        gc.unfreeze()
        print(f"\n{name}\n{results.summary()}\n{options.out / stem}.json, .md", flush=True)
    return int(any(row.failed for row in results.rows))


if __name__ == "__main__":
    sys.exit(main())
