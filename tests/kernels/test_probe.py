import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqkit.kernels import probe

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(program: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_the_package_does_not_import_triton():
    assert run("import sys, vqkit.kernels; print('triton' in sys.modules)") == "False"


def test_without_triton_the_import_error_is_the_reason():
    program = "import sys; sys.modules['triton'] = None; from vqkit.kernels import probe; print(probe.unavailable())"
    assert run(program).startswith("Triton cannot be imported: ")


def test_cpu_tensors_need_the_interpreter():
    pytest.importorskip("triton")
    program = "import torch; from vqkit.kernels import probe; print(probe.INTERPRETING, probe.unavailable(torch.zeros(1)))"
    assert run(program).startswith("False the tensors are on cpu; Triton needs CUDA, or TRITON_INTERPRET=1")
    if probe.triton.__version__ >= "3.7":
        assert run(program, TRITON_INTERPRET="1") == "True None"


def test_dtypes_and_devices_that_are_refused():
    if reason := probe.unavailable(torch.zeros(1, device=DEVICE)):
        pytest.skip(reason)
    refused = torch.zeros(1, device=DEVICE).to(torch.float8_e5m2)
    assert "torch.float8_e5m2" in probe.unavailable(refused)
    assert "meta" in probe.unavailable(torch.zeros(1, device="meta"))
    assert probe.unavailable(torch.zeros(1, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)) is None


def test_an_interpreter_that_cannot_loop_is_refused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(probe, "INTERPRETING", True)
    monkeypatch.setattr(probe.triton, "__version__", "3.6.0")
    monkeypatch.setattr(probe.np, "__version__", "2.4.1")
    assert "cannot loop with NumPy 2.4.1" in probe.unavailable()


def test_a_driver_that_cannot_be_built_is_refused(monkeypatch):
    pytest.importorskip("triton")

    class Driver:
        def get_current_target(self):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(probe, "INTERPRETING", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(probe.triton.runtime.driver, "_active", Driver())
    probe._driver_fault.cache_clear()
    try:
        assert "Failed to find C compiler" in probe._device_refusal(torch.device("cuda"))
    finally:
        probe._driver_fault.cache_clear()
