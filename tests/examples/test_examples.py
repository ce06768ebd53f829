"""Every example runs, and says that the numbers are the same before and after."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"switch_vector_quantize_pytorch": "vector_quantize_pytorch", "accelerate_diffusers": "diffusers",
         "accelerate_encodec": "transformers"}
SMALL = {"accelerate_encodec": ["--steps", "2", "--seconds", "0.2"]}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "comparison"))
def test_example(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    small = SMALL.get(name, ["--steps", "3", "--codebook-size", "256"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, EXAMPLES / f"{name}.py", *small], capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr
    difference = re.search(r"losses differ by (\S+) of their value", result.stdout)
    assert float(difference[1]) < 1e-4, result.stdout
