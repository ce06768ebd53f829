"""The command for GPUs, on tiny shapes and the wall clock: every row is measured or says why not, and nothing is lost or overrun."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import cases, every_kernel, floors, gpu, timing
from benchmarks.catalogue import catalogue
from benchmarks.results import NOT_REACHED, Results

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"
CPU = torch.device("cpu")
H200 = floors.Ceilings(bandwidth=4.3e12, tensor=790e12, alu=1.67e13)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The exit status of a whole run, its folder, its JSON and its Markdown."""
    folder = tmp_path_factory.mktemp("results")
    status = gpu.main(["--device", "cpu", "--out", str(folder)])
    (data,), (text,) = folder.glob("*.json"), folder.glob("*.md")
    return status, json.loads(data.read_text()), text.read_text()


def test_every_row_is_measured_or_says_why_not(whole):
    status, data, text = whole
    assert status == 0 and not any(row["failed"] for row in data["rows"])
    expected = [(case.name, contender.name) for case in catalogue("cpu") for contender in case.contenders]
    assert [(row["case"], row["contender"]) for row in data["rows"]] == expected
    for row in data["rows"]:
        assert (row["median"] is None) == bool(row["reason"]) and row["reason"] != NOT_REACHED
        assert row["contender"] != "vqkit" or 0 < row["lower"] <= row["median"] <= row["upper"] and row["repeats"] >= 3
        assert f"| {row['case']} | {row['contender']} | {row['reason'] or ''}" in text


def test_what_was_measured_is_said(whole):
    _, data, text = whole
    assert f"PyTorch {torch.__version__}" in data["versions"] and "benchmarks.gpu" in data["command"] and data["date"][:2] == "20"
    assert data["date"] in text and "bf16 product" in text and "nearest" in data["doctor"]
    assert data["ceilings"]["bandwidth"] > 0 and data["ceilings"]["tensor"] > 0


def test_searches_are_checked_against_float64(whole):
    searches = [row for row in whole[1]["rows"] if "nearest" in row["case"] and row["contender"] == "vqkit"]
    assert len(searches) == 4 and all(row["wrong"] == 0 for row in searches)


def test_shares_are_those_of_the_contenders_own_step(whole):
    _, data, text = whole
    medians = {(row["case"], row["contender"]): row["median"] for row in data["rows"]}
    parts = [row for row in data["rows"] if row["part_of"]]
    assert len(parts) == 10
    for row in parts:
        share = f"{row['median'] / medians[row['part_of'], row['contender']]:.1%}"
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row['case']} | {row['contender']} |"))
        assert share in line


@pytest.mark.parametrize(
    "shape, bf16, fp32",
    [
        ((10**6, 1024, 8), 0.08, 0.12),
        ((10**6, 8192, 16), 0.61, 1.0),
        ((10**6, 8192, 64), 1.33, 4.0),
        ((10**6, 8192, 256), 5.3, 15.9),
        ((10**6, 8192, 512), 10.6, 31.9),
        ((10**5, 262144, 64), 4.2, 12.7),
    ],
)
def test_floors_of_the_search(shape, bf16, fp32):
    assert H200.floor(floors.search(*shape, 2)) * 1e3 == pytest.approx(bf16, rel=0.05)
    assert H200.floor(floors.search(*shape, 4)) * 1e3 == pytest.approx(fp32, rel=0.05)


def test_floors_of_the_others():
    """Published: forward 60 us and gradient 90 us at a million rows of 64 in bf16; consecutive work adds up."""
    step = floors.straight_through(10**6, 1, 64, 2)
    assert H200.floor(step) * 1e6 == pytest.approx(60 + 90, rel=0.05)
    assert H200.floor(step, step) == pytest.approx(2 * H200.floor(step))
    assert H200.floor(floors.statistics(10**6, 1024, 64, 4)) == pytest.approx((264e6 + 1024 * 264) / 4.3e12)
    assert floors.Ceilings(1.0, 1.0, None).floor(floors.Work(tensor=3, alu=9, memory=2)) == 3


def test_the_shapes_of_the_plan_are_all_there():
    names = [case.name for case in catalogue("cuda")]
    assert len(names) == len(set(names))
    for shape in ((10**6, 1024, 8), (10**6, 8192, 16), (10**6, 8192, 64), (10**6, 8192, 256), (10**6, 8192, 512), (10**5, 262144, 64)):
        for dtype in ("fp32", "fp16", "bf16"):
            assert f"nearest code, {dtype}, {cases.Shape(*shape)}" in names


def run(rows, folder, seconds=60.0):
    """Run one case of these contenders on nothing."""
    case = cases.Case("case", lambda device: (torch.ones(3),), tuple(rows))
    results = Results("device", {})
    gpu.Run(CPU, [case], results, folder, "device", time.monotonic() + seconds).all()
    return results.rows


def test_what_exceeds_the_memory_is_not_run(tmp_path):
    def never(x):
        raise AssertionError("was prepared")

    (row,) = run([cases.Contender("matrix", never, scratch=1 << 60)], tmp_path)
    assert row.reason.startswith("not run: needs at least 1073741824.0 GiB") and not row.failed
    assert "1073741824.0 GiB" in (tmp_path / "device.md").read_text()


def test_failures_are_reasons_and_ours_are_failures(tmp_path):
    def broken(x):
        raise ValueError("first line\nsecond | line")

    def absent(x):
        return lambda: __import__("no_such_module")

    other, missing, ours, sound = run(
        [
            cases.Contender("other", broken),
            cases.Contender("missing", absent),
            cases.Contender("vqkit (broken)", broken),
            cases.Contender("vqkit", lambda x: x.sum),
        ],
        tmp_path,
    )
    assert other.reason == ours.reason == "failed: ValueError: first line" and "no_such_module" in missing.reason
    assert (other.failed, missing.failed, ours.failed, sound.failed) == (False, False, True, False) and sound.median > 0


def test_after_the_time_nothing_starts_and_the_rest_is_named(tmp_path):
    (row,) = run([cases.Contender("vqkit", lambda x: x.sum)], tmp_path, seconds=-1)
    assert row.reason == NOT_REACHED
    assert NOT_REACHED in (tmp_path / "device.json").read_text() and NOT_REACHED in (tmp_path / "device.md").read_text()


def test_who_is_interrupted_keeps_what_was_measured(tmp_path):
    def interrupt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([cases.Contender("vqkit", lambda x: x.sum), cases.Contender("slow", interrupt)], tmp_path)
    first, second = json.loads((tmp_path / "device.json").read_text())["rows"]
    assert first["median"] > 0 and second["reason"] == NOT_REACHED


def test_inputs_take_turns():
    seen = []
    calls = [lambda name=name: seen.append(name) for name in "abc"]
    result = timing.measure(calls, CPU, 0.01)
    assert result.repeats == timing.MOST_REPEATS and seen[-6:] in (list("abcabc"), list("bcabca"), list("cabcab"))
    assert timing.sets_needed(1 << 30, CPU) == 1 < timing.sets_needed(1 << 20, CPU) < timing.sets_needed(1, CPU)


def test_wrong_codes_are_counted():
    latents, codes = torch.randn(8, 3), torch.randn(5, 3)
    right = torch.cdist(latents.double(), codes.double()).argmin(-1)
    assert cases.wrong_codes((latents, codes), right) == 0
    right[:2] = (right[:2] + 1) % 5
    assert cases.wrong_codes((latents, codes), right) == 0.25


def test_a_part_of_the_cases_does_not_replace_a_whole_run(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--only", "TWO NEAREST", "--out", str(tmp_path)]) == 0
    (data,) = tmp_path.glob("*.json")
    assert data.stem.endswith("-only") and {row["case"] for row in json.loads(data.read_text())["rows"]} == {"two nearest codes, fp32, N 64, K 9, D 5"}
    assert "rows measured" in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "cpu", "--only", "no such case"], "--only: no case has 'no such case'"),
        (["--device", "abacus"], "--device: "),
        (["--device", "meta"], "expected cuda, cuda:N or cpu, got meta"),
        (["--device", "cpu", "--seconds", "0"], "--seconds: expected more than 0, got 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        gpu.main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so(capsys):
    with pytest.raises(SystemExit) as exit:
        gpu.main([])
    assert exit.value.code == 2 and "no CUDA device: PyTorch" in capsys.readouterr().err
    done = subprocess.run(["bash", SCRIPT], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 2 and "no CUDA device: PyTorch" in done.stderr and not done.stdout


def test_the_script_is_sound_and_refuses_what_it_does_not_know():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    done = subprocess.run(["bash", SCRIPT, "bulid"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected build, test or time, got 'bulid'" in done.stderr


@pytest.fixture
def machine(tmp_path):
    """Run the script on a machine that only notes what it is asked to do."""
    log, python, sanitizer = tmp_path / "log", tmp_path / "python", tmp_path / "compute-sanitizer"
    python.write_text(
        '#!/bin/sh\n[ "$1" = - ] && { echo "90 A device"; exit; }\n'
        f'echo "CUDA=$VQKIT_CUDA ARCH=$VQKIT_CUDA_ARCHITECTURES INTERPRET=${{TRITON_INTERPRET-unset}} $*" >> {log}\n'
        'case "$*" in *xdist*) exit 1 ;; *"$FAILS"*) exit 3 ;; esac\n'
    )
    sanitizer.write_text(f'#!/bin/sh\necho "sanitizer $*" >> {log}\n')
    for program in (python, sanitizer):
        program.chmod(0o755)

    def start(*arguments, fails="nothing"):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = os.environ | {"PYTHON": str(python), "PATH": path, "TRITON_INTERPRET": "1", "FAILS": fails}
        done = subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True)
        return done, log.read_text().splitlines()

    return start


def test_the_script_builds_tests_and_times(machine):
    done, commands = machine("--only", "nearest")
    assert done.returncode == 0, done.stderr
    install, doctor, _, tests, sanitizer, times = commands
    assert "CUDA=1 ARCH=90 " in install and "--no-index --no-deps --no-build-isolation -e ." in install
    assert doctor.endswith("-m vqkit") and "INTERPRET=unset -m pytest tests/ops tests/kernels tests/native/test_cuda.py" in tests
    assert "--tool memcheck" in sanitizer and sanitizer.endswith("-m benchmarks.every_kernel")
    seconds = int(times.split("--seconds ")[1].split()[0])
    assert 400 < seconds < 440 and times.endswith("--only nearest")


def test_a_part_that_fails_does_not_stop_the_others(machine):
    done, commands = machine("test", "time", fails="pytest")
    assert done.returncode == 1 and "1 of 2 parts failed: test" in done.stdout and "benchmarks.gpu" in commands[-1]


def test_every_kernel_is_watched(monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if torch.cuda.is_available():
        pytest.skip("the interpreter tells which kernels ran")
    ran, launch = set(), interpreter.InterpretedFunction.__getitem__
    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", lambda self, grid: ran.add(self.fn.__name__) or launch(self, grid))
    lines = every_kernel.run("cpu")
    written = {
        node.name
        for path in (ROOT / "vqkit/kernels").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert ran == written and len(lines) == 4


def test_the_tests_on_a_gpu_need_no_more_packages_than_the_kernels():
    allowed = {"torch", "triton", "numpy", "pytest", "vqkit", *sys.stdlib_module_names}
    folders = [ROOT / "tests/ops", ROOT / "tests/kernels"]
    paths = [path for folder in folders for path in folder.glob("*.py")] + [ROOT / "tests/native/test_cuda.py", ROOT / "tests/conftest.py"]
    script = SCRIPT.read_text()
    for path in paths:
        if f"--ignore={path.relative_to(ROOT)}" in script:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            beside = {module.stem for module in path.parent.glob("*.py")}
            assert {name.split(".")[0] for name in names} <= allowed | beside, f"{path}: {names}"
            modules = {".".join(name.split(".")[:2]) for name in names if name.startswith("vqkit.")}
            assert not modules & {"vqkit.language", "vqkit.models", "vqkit.metrics"}, f"{path}: {names}"
