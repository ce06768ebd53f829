"""Two ranks with a batch each learn what one rank learns from both, and hold the same codebook to the bit."""

import subprocess
import sys

import torch
from safetensors.torch import load_file

import vqkit

_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
import vqkit

early = vqkit.Quantizer(6, 16)          # built before there is a process group, as users do
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
plain = vqkit.Quantizer(6, 16, decay=0.9)
revived = vqkit.Quantizer(6, 16, decay=0.5, kmeans_init=True, threshold_ema_dead_code=1)
early.load_state_dict(plain.state_dict())
early.codebook.decay = 0.9
batches = torch.randn(8, 2, 40, 6, generator=torch.Generator().manual_seed(1))
torch.manual_seed(rank)
for step, batch in enumerate(batches):
    plain(batch[rank]), early(batch[rank])
    # One rank has nothing to offer at every third step.
    revived(batch[rank], torch.full((40,), not (rank == 1 and step % 3 == 1)))
# Only the second rank of the second batch has anything to start from, and then only three latents.
lonely = vqkit.Quantizer(6, 16, kmeans_init=True)
untouched = lonely.codes.clone()
lonely(batches[0][rank], torch.zeros(40, dtype=torch.bool))
torch.testing.assert_close(lonely.codes, untouched)
assert not lonely.codebook.initialised
lonely(batches[1][rank] + 5, torch.arange(40) < 3 * rank)
# A checkpoint that one rank has loaded reaches the other through the wrapper alone.
loaded = torch.nn.Sequential(torch.nn.Linear(6, 6), vqkit.Quantizer(6, 16, kmeans_init=True))
if rank == 0:
    loaded[1].codebook.load_state_dict(early.codebook.state_dict())
wrapped = torch.nn.parallel.DistributedDataParallel(loaded)
for batch in batches:
    wrapped(batch[rank]).loss.backward()
# Compiled, nothing is known on the host.
compiled = vqkit.Quantizer(6, 16, kmeans_init=True)
step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
step(batches[0][rank], torch.zeros(40, dtype=torch.bool))
step(batches[1][rank] + 5, torch.arange(40) < 3 * rank)
found = {"plain": plain, "early": early, "revived": revived, "lonely": lonely, "loaded": loaded[1], "compiled": compiled}
save_file({name: quantizer.codes for name, quantizer in found.items()}, f"{sys.argv[1]}/rank{rank}.safetensors")
dist.destroy_process_group()
# Past Python's own end: torch.compile holds the group, whose threads may abort a process that shuts down around them.
os._exit(0)
"""


def test_two_ranks_equal_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    torch.manual_seed(0)
    alone = vqkit.Quantizer(6, 16, decay=0.9)
    for batch in torch.randn(8, 2, 40, 6, generator=torch.Generator().manual_seed(1)):
        alone(batch.reshape(80, 6))
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name}: the ranks' codebooks differ"
    for name in ("plain", "early"):
        torch.testing.assert_close(first[name], alone.codes, rtol=1e-5, atol=1e-6)
    for name in ("lonely", "compiled"):
        assert (first[name].norm(dim=-1) > 4).all(), f"{name}: every code starts from the latents of the only rank that has some"
    assert first["revived"].isfinite().all() and len(first["revived"].unique(dim=0)) == 16
