"""Quantizers on 2 and 4 ranks, and what a rank says that has lost another one."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "data_parallel.py"


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_rank_on_the_joined_batch(ranks):
    """50 steps; running means, gradients under DDP and FSDP2, k-means starts, dead codes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(PROGRAM)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal") == ranks


_LOSS = """
import datetime, os, sys, time
import torch, torch.distributed as dist
import vqkit

folder, rank, fate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
timeout = datetime.timedelta(seconds=5)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
quantizer = vqkit.Quantizer(6, 16, kmeans_init=True, threshold_ema_dead_code=1)
for step in range(3):
    quantizer(torch.randn(40, 6))
dist.barrier()
if rank == 1:
    if fate == "stalls":
        time.sleep(30)
    os._exit(1)
start = time.monotonic()
try:
    while time.monotonic() - start < 25:
        quantizer(torch.randn(40, 6))
    print("went on alone", flush=True)
except RuntimeError as error:
    print(f"{time.monotonic() - start < 15} {error}", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("fate, words", [("dies", "onnection"), ("stalls", "imed out")])
def test_a_lost_rank_leaves_an_error_within_the_timeout_of_the_group(fate, words, tmp_path):
    (tmp_path / "program.py").write_text(_LOSS)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank), fate], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        said = processes[0].communicate(timeout=120)[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert said.startswith("True ") and words in said, said
