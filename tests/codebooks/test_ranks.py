"""Two ranks with a batch each learn what one rank learns from both, and hold the same codebook to the bit."""

import subprocess
import sys

import torch
from safetensors.torch import load_file

import vqkit

_PROGRAM = """
import sys
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
save_file({"plain": plain.codes, "early": early.codes, "revived": revived.codes}, f"{sys.argv[1]}/rank{rank}.safetensors")
dist.destroy_process_group()
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
    for name in ("plain", "early", "revived"):
        assert torch.equal(first[name], second[name]), f"{name}: the ranks' codebooks differ"
    for name in ("plain", "early"):
        torch.testing.assert_close(first[name], alone.codes, rtol=1e-5, atol=1e-6)
    assert first["revived"].isfinite().all() and len(first["revived"].unique(dim=0)) == 16
