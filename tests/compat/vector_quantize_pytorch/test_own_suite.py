"""The tests that vector-quantize-pytorch has of its own, with our package under its name: one process, which imports no original."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("VQKIT_PEER_SUITE")

# What is not offered here, a name or a module, skips the test that imports it.
RUN = """
import importlib
import pkgutil
import sys
import pytest
import vqkit.compat.vector_quantize_pytorch as ours

THEIRS = "vector_quantize_pytorch"

def missing(name, *_):
    if name.startswith("__"):
        raise AttributeError(name)
    pytest.skip(f"vqkit has no {name}", allow_module_level=True)

class Missing:
    def find_spec(name, *_):
        return missing(name) if name.startswith(THEIRS) else None

parts = {f"{THEIRS}.{part.name}": importlib.import_module(f"{ours.__name__}.{part.name}") for part in pkgutil.iter_modules(ours.__path__)}
for name, module in {THEIRS: ours, **parts}.items():
    sys.modules[name], module.__getattr__ = module, missing
sys.meta_path.append(Missing)
"""
TESTS = """
import sys
import pytest
sys.exit(pytest.main([*sys.argv[2:], "--rootdir", sys.argv[1], "-q", "-rsf", "-p", "no:cacheprovider", "-p", "no:xdist"]))
"""


def run(program, *tests):
    command = [sys.executable, "-c", program, str(Path(FOLDER).resolve()), *tests]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=FOLDER)


def failed(output):
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)


@pytest.mark.skipif(
    not FOLDER,
    reason="VQKIT_PEER_SUITE names no folder: put files of https://github.com/lucidrains/vector-quantize-pytorch/tree/master/tests there",
)
def test_the_own_suite_passes():
    assert list(Path(FOLDER).glob("test_*.py")), f"VQKIT_PEER_SUITE: expected a folder with test_*.py, got {FOLDER}"
    done = run(RUN + TESTS, str(Path(FOLDER).resolve()))
    names = failed(done.stdout)
    assert "passed" in done.stdout and (names or done.returncode == 0), done.stdout + done.stderr
    if names:
        # The suite has a test or two that the release it comes with does not pass.
        original = run(TESTS, *names)
        assert set(failed(original.stdout)) == set(names), done.stdout + original.stdout
    print(done.stdout)
