"""Promises of the package as a whole: a quick, quiet import; rooms that only import what they may; backends that say no."""

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

import vqkit
from vqkit import backend as backends

ROOT = pathlib.Path(__file__).parent.parent

# Rooms in the order in which they may import one another; see CONTRIBUTING.md.
MAY_IMPORT = {
    "kernels": {"kernels"},
    "native": {"_native"},
    "backend": set(),
    "ops": {"ops", "kernels", "native", "backend"},
    "codebooks": {"codebooks", "ops"},
    "nn": {"nn", "ops"},
    "objectives": {"objectives", "ops", "nn"},
    "quantizers": {"quantizers", "ops", "codebooks"},
    "language": {"language", "ops"},
    "metrics": {"metrics", "objectives", "ops"},
    "compat": {"compat", "ops", "codebooks", "quantizers"},
    "models": {"models", "ops", "codebooks", "quantizers", "nn", "objectives", "metrics", "language"},
}
ONLY_IN = {
    "triton": {"kernels"},
    "transformers": {"language", "metrics"},
    "nltk": {"language", "metrics"},
    "textblob": {"language", "metrics"},
    "training": set(),
}


def imports(path):
    """Every module a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if node.module == "vqkit" else [node.module]


def sources():
    return [path for path in (ROOT / "vqkit").rglob("*.py") if path.parent != ROOT / "vqkit" or path.stem in MAY_IMPORT]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_who_imports_whom(path):
    room = path.relative_to(ROOT / "vqkit").parts[0].removesuffix(".py")
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "vqkit" and rest:
            assert rest[0] in MAY_IMPORT[room], f"{room} may not import vqkit.{rest[0]}"
        assert room in ONLY_IN.get(top, {room}), f"{room} may not import {top}"


def test_import_is_quick_and_starts_nothing():
    program = (
        "import sys, time; start = time.perf_counter(); import vqkit; took = time.perf_counter() - start\n"
        "assert not {'triton', 'transformers', 'nltk', 'training'} & set(sys.modules), 'loaded too much'\n"
        "import torch; assert not torch.cuda.is_initialized(); vqkit.Quantizer\n"
        "assert 'triton' not in sys.modules; print(took)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 3


def test_every_public_name_can_be_had():
    for name in vqkit.__all__:
        getattr(vqkit, name)
    with pytest.raises(AttributeError, match="Quantiser.*Quantizer"):
        vqkit.Quantiser


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_native_backend_is_there_where_a_compiler_is():
    assert vqkit.native.rejects(torch.zeros(1)) is None


def test_doctor_explains_every_backend():
    from vqkit.__main__ import report

    text = report()
    for word in ("torch", "nearest", "straight_through", "statistics", "aggregate", "native", "triton", "reference", "serves"):
        assert word in text


def test_an_explicit_request_never_falls_back(monkeypatch):
    refusals = {"triton": lambda: "no CUDA device", "native": lambda: None, "reference": lambda: None}
    assert backends.choose("op", refusals) == "native"
    assert backends.choose("op", refusals, "reference") == "reference"
    assert backends.choose("op", refusals, on_request={"native"}) == "reference"
    with pytest.raises(vqkit.BackendError, match="op.*triton.*no CUDA device"):
        backends.choose("op", refusals, "triton")
    with pytest.raises(vqkit.BackendError, match="no CUDA device"), vqkit.use_backend("triton"):
        backends.choose("op", refusals)
    monkeypatch.setenv("VQKIT_BACKEND", "reference")
    assert backends.choose("op", refusals) == "reference"
    with vqkit.use_backend("native"):
        assert backends.choose("op", refusals) == "native"
        assert backends.choose("op", refusals, "reference") == "reference"


def test_unknown_backends_are_named(monkeypatch):
    with pytest.raises(vqkit.BackendError, match="abacus"), vqkit.use_backend("abacus"):
        pass
    monkeypatch.setenv("VQKIT_BACKEND", "abacus")
    with pytest.raises(vqkit.BackendError, match="VQKIT_BACKEND.*abacus"):
        vqkit.ops.nearest_code(torch.zeros(1, 2), torch.zeros(1, 2))
