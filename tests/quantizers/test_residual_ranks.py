"""Two ranks use the same stages, hold the same codebooks to the bit, and learn what one rank learns from both batches."""


import torch
from safetensors.torch import load_file

from vqkit.quantizers.residual import ResidualQuantizer

_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from vqkit.quantizers.residual import ResidualQuantizer

def build(**change):
    torch.manual_seed(0)
    return ResidualQuantizer(**(dict(dim=6, num_quantizers=4, codebook_size=16, decay=0.9) | change))

early = build(quantize_dropout=True)
early(torch.randn(4, 6))                # draws before there is a process group
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
found = {"early": early, "dropout": build(quantize_dropout=True, threshold_ema_dead_code=1, kmeans_init=True), "plain": build(),
         "shared": build(shared_codebook=True), "beam": build(beam_size=3), "learned": build(codebook="learned", quantize_dropout=True)}
batches = torch.randn(6, 2, 40, 6, generator=torch.Generator().manual_seed(1))
torch.manual_seed(rank)                 # ranks draw differently
numbers = []
for batch in batches:
    for name, quantizer in found.items():
        # One rank has nothing to offer at every third step.
        empty = name == "dropout" and rank == 1 and len(numbers) % 3 == 1
        result = quantizer(batch[rank], torch.full((40,), not empty))
    numbers.append(len(result.parts))
wrapped = torch.nn.parallel.DistributedDataParallel(found["learned"], find_unused_parameters=True)
for batch in batches:
    wrapped(batch[rank]).loss.backward()
state = {f"{name}.{key}": value.contiguous() for name, quantizer in found.items() for key, value in quantizer.state_dict().items()}
save_file(state | {"numbers": torch.tensor(numbers)}, f"{sys.argv[1]}/rank{rank}.safetensors")
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_ranks_use_the_same_stages_and_learn_what_one_learns(tmp_path, two_ranks):
    two_ranks(_PROGRAM)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name}: the ranks differ"
    assert len(set(first["numbers"].tolist())) > 1
    for name, change in {"plain": {}, "shared": dict(shared_codebook=True), "beam": dict(beam_size=3)}.items():
        torch.manual_seed(0)
        alone = ResidualQuantizer(dim=6, num_quantizers=4, codebook_size=16, decay=0.9, **change)
        for batch in torch.randn(6, 2, 40, 6, generator=torch.Generator().manual_seed(1)):
            alone(batch.reshape(80, 6))
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(first[f"{name}.{key}"], value, rtol=1e-5, atol=1e-5)
