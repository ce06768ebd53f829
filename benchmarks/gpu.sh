#!/usr/bin/env bash
# Builds, tests and times vqkit on the CUDA device of this machine, offline, with the packages that are there.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh [build] [test] [time] [OPTION...]

  build   install this checkout (editable) with its CUDA code for this device, and say which backend serves what
  test    the GPU tests on the device, and compute-sanitizer over every kernel where it is installed
  time    measure; writes benchmarks/results/DEVICE.json and DEVICE.md

Without a part: all three. Options go to `python -m benchmarks.gpu` (time): --only TEXT, --seconds S, --out DIR.
Environment: PYTHON (default .venv/bin/python, else python3); BUDGET, seconds for everything (default 440).
Exit status: 0; 1 when a part failed (the others still run); 2 without CUDA or for wrong arguments.
TEXT
}

parts=()
while (($#)); do
  case $1 in
    build | test | time) parts+=("$1") ;;
    -h | --help) usage; exit 0 ;;
    -*) break ;;
    *) echo "gpu.sh: expected build, test or time, got '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
((${#parts[@]})) || parts=(build test time)

budget=${BUDGET:-440}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || { echo "gpu.sh: there is no $PYTHON; choose an interpreter with PYTHON=..." >&2; exit 2; }
# The interpreter of Triton would take the place of the device; a forced backend, that of all others.
unset TRITON_INTERPRET VQKIT_BACKEND
export PYTHONUNBUFFERED=1

device=$("$PYTHON" - <<'TEXT'
import sys

try:
    import torch
except ImportError as error:
    sys.exit(f"gpu.sh: PyTorch cannot be imported: {error}; choose another interpreter with PYTHON=...")
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: no CUDA device: PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees none; does nvidia-smi?")
print("%d%d %s" % (*torch.cuda.get_device_capability(), torch.cuda.get_device_name()))
TEXT
) || exit 2
capability=${device%% *}
echo "== ${device#* }, sm_$capability; parts: ${parts[*]}"

# Runs a command for at most so many seconds, and no longer than the budget; SIGINT lets Python say what it has.
within() {
  local seconds=$1 left=$((budget - SECONDS))
  shift
  ((left > 0)) || { echo "gpu.sh: the $budget seconds of BUDGET are up" >&2; return 124; }
  timeout --signal=INT --kill-after=10 $((seconds < left ? seconds : left)) "$@"
}

build() {
  VQKIT_CUDA=1 VQKIT_CUDA_ARCHITECTURES=${VQKIT_CUDA_ARCHITECTURES:-$capability} within 180 \
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation -e . && within 60 "$PYTHON" -m vqkit
}

tests() {
  local workers=() status=0 cores
  cores=$(nproc)
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    # Most of the time is Triton's compiler; each worker holds a context on the device.
    workers=(-n $((cores < 8 ? cores : 8)))
  fi
  # Compiling ahead of time for other generations and ranks on the processor need no device, and take long.
  OMP_NUM_THREADS=1 within 160 "$PYTHON" -m pytest tests/ops tests/kernels tests/native/test_cuda.py \
    --ignore=tests/kernels/test_ahead_of_time.py --ignore=tests/ops/test_sharded.py \
    -q -m "not slow" -p no:cacheprovider --continue-on-collection-errors "${workers[@]}" || status=1
  if command -v compute-sanitizer >/dev/null; then
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within 90 compute-sanitizer --tool memcheck --target-processes application-only --error-exitcode 9 \
      "$PYTHON" -m benchmarks.every_kernel || status=1
  else
    echo "compute-sanitizer is not installed: memory accesses were not checked"
  fi
  return $status
}

timing() {
  # The last row may still be compiling when no further one is started.
  local left=$((budget - SECONDS - 25))
  within "$budget" "$PYTHON" -m benchmarks.gpu --seconds $((left > 10 ? left : 10)) "$@"
}

failed=()
for part in "${parts[@]}"; do
  echo "== $part, after $SECONDS s"
  case $part in
    build) build ;;
    test) tests ;;
    time) timing "$@" ;;
  esac
  status=$?
  ((status == 0)) || failed+=("$part (status $status$( ((status == 124)) && echo ', stopped at its time limit'))")
done
echo "== ${#failed[@]} of ${#parts[@]} parts failed${failed:+: ${failed[*]}}, after $SECONDS s"
((${#failed[@]} == 0))
