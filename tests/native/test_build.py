"""Installing with and without what the native module needs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "csrc", "vqkit")


def install(folder, **environment):
    """Installs a copy of the sources into folder/site with the tools at hand; returns the finished process."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_native*"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-v", "--target", folder / "site", copy]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def ask(folder, expression):
    # the checkout must not be what is imported, nor the module of an editable installation
    clean = "sys.meta_path[:] = [finder for finder in sys.meta_path if not finder.__module__.startswith('__editable__')]"
    code = f"import sys; sys.path.insert(0, sys.argv[1]); {clean}; from vqkit import native; print({expression})"
    command = [sys.executable, "-P", "-c", code, folder / "site"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def tools():
    for module in ("setuptools", "pybind11"):
        pytest.importorskip(module)


@pytest.mark.slow
def test_without_a_compiler_the_package_is_pure_python_and_says_why(tmp_path):
    done = install(tmp_path, CXX="/nonexistent/c++", VQKIT_NATIVE="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "site" / "vqkit").glob("_native*.so"))
    facts = ask(tmp_path, "native.describe(), native.__file__")
    assert "'built': False" in facts and "/nonexistent/c++" in facts and str(tmp_path) in facts
    assert "/nonexistent/c++" in ask(tmp_path, "native.rejects()")


@pytest.mark.slow
def test_a_missing_compiler_is_an_error_when_native_is_demanded(tmp_path):
    done = install(tmp_path, CXX="/nonexistent/c++", VQKIT_NATIVE="1")
    assert done.returncode != 0
    assert "VQKIT_NATIVE=1, but the native module was not built" in done.stdout + done.stderr


@pytest.mark.slow
def test_native_can_be_left_out(tmp_path):
    done = install(tmp_path, VQKIT_NATIVE="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VQKIT_NATIVE=0" in ask(tmp_path, "native.rejects()")


@pytest.mark.slow
def test_a_wrong_switch_is_refused(tmp_path):
    done = install(tmp_path, VQKIT_NATIVE="yes")
    assert done.returncode != 0 and re.search("VQKIT_NATIVE must be auto, 0 or 1, got 'yes'", done.stdout + done.stderr)


@pytest.mark.slow
def test_an_nvcc_that_does_not_work_leaves_a_processor_module(tmp_path):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
    broken.chmod(0o755)
    if not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")):
        pytest.skip("no C++ compiler")
    done = install(tmp_path, CUDACXX=str(broken), VQKIT_NATIVE="1", VQKIT_CUDA="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    facts = ask(tmp_path, "native.describe(), native.cuda_rejects()")
    assert "'built': True" in facts and "'cuda_architectures': ''" in facts and "broken on purpose" in facts


@pytest.mark.slow
@pytest.mark.parametrize("native", ["auto", "1"])
def test_an_nvcc_that_does_not_work_is_an_error_when_cuda_is_demanded(tmp_path, native):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
    broken.chmod(0o755)
    done = install(tmp_path, CUDACXX=str(broken), VQKIT_NATIVE=native, VQKIT_CUDA="1")
    assert done.returncode != 0 and "VQKIT_CUDA=1" in done.stdout + done.stderr
    assert not (tmp_path / "site" / "vqkit").exists()
