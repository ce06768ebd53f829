"""Two ranks with a batch each learn what one rank learns from both, and hold the same codebook to the bit."""

import copy

import torch
from safetensors.torch import load_file

import vqkit
from vqkit.codebooks import AffineCodebook, EMACodebook
from vqkit.quantizers.regularizers import Diversity, Entropy

_PROGRAM = """
import contextlib, os, sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
import vqkit
from vqkit.codebooks import AffineCodebook, EMACodebook, accumulate
from vqkit.quantizers.regularizers import Diversity, Entropy

early = vqkit.Quantizer(6, 16)          # built before there is a process group, as users do
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
plain = vqkit.Quantizer(6, 16, decay=0.9)
revived = vqkit.Quantizer(6, 16, decay=0.5, kmeans_init=True, threshold_ema_dead_code=1)
affine = vqkit.Quantizer(6, 16, codebook=AffineCodebook(EMACodebook(16, 6)))
affine.codebook.inner.load_state_dict(plain.codebook.state_dict())
gathered = vqkit.Quantizer(6, 16, decay=0.9)
terms = [Diversity(0.5, 3), Entropy(0.5, 0.7, 1)]
regular = torch.nn.Sequential(torch.nn.Linear(6, 6), vqkit.Quantizer(6, 16, codebook="learned", regularizers=terms))
early.load_state_dict(plain.state_dict())
gathered.load_state_dict(plain.state_dict())
torch.nn.init.eye_(regular[0].weight), torch.nn.init.zeros_(regular[0].bias)
with torch.no_grad():
    regular[1].codebook.codes.copy_(plain.codes)
early.codebook.decay = 0.9
batches = torch.randn(8, 2, 40, 6, generator=torch.Generator().manual_seed(1))
torch.manual_seed(rank)
for step, batch in enumerate(batches):
    plain(batch[rank]), early(batch[rank]), affine(batch[rank] + 3)
    with accumulate(gathered) if step % 2 == 0 else contextlib.nullcontext():
        gathered(batch[rank])
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
# The gradients that the wrapper averages.
averaging = torch.nn.parallel.DistributedDataParallel(regular)
averaging(batches[0][rank]).loss.backward()
# Compiled, nothing is known on the host.
compiled = vqkit.Quantizer(6, 16, kmeans_init=True)
step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
step(batches[0][rank], torch.zeros(40, dtype=torch.bool))
step(batches[1][rank] + 5, torch.arange(40) < 3 * rank)
found = {"plain": plain, "early": early, "revived": revived, "lonely": lonely, "loaded": loaded[1], "compiled": compiled,
         "affine": affine, "gathered": gathered}
found = {name: quantizer.codes for name, quantizer in found.items()}
found |= {"gradient of the layer": regular[0].weight.grad, "gradient of the codes": regular[1].codebook.codes.grad}
save_file(found, f"{sys.argv[1]}/rank{rank}.safetensors")
dist.destroy_process_group()
# Past Python's own end: torch.compile holds the group, whose threads may abort a process that shuts down around them.
os._exit(0)
"""


def test_two_ranks_equal_one(tmp_path, two_ranks):
    two_ranks(_PROGRAM)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    torch.manual_seed(0)
    alone = vqkit.Quantizer(6, 16, decay=0.9)
    codes, gathered, affine = alone.codes, copy.deepcopy(alone), vqkit.Quantizer(6, 16, codebook=AffineCodebook(EMACodebook(16, 6)))
    affine.codebook.inner.load_state_dict(alone.codebook.state_dict())
    batches = torch.randn(8, 2, 40, 6, generator=torch.Generator().manual_seed(1))
    for batch in batches:
        alone(batch.reshape(80, 6)), affine(batch.reshape(80, 6) + 3)
    for batch in batches.view(4, 160, 6):
        gathered(batch)
    terms = [Diversity(0.5, 3), Entropy(0.5, 0.7, 1)]
    layer, regular = torch.nn.Linear(6, 6), vqkit.Quantizer(6, 16, codebook="learned", regularizers=terms)
    torch.nn.init.eye_(layer.weight), torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        regular.codebook.codes.copy_(codes)
    regular(layer(batches[0].reshape(80, 6))).loss.backward()
    expected = {
        "affine": affine.codes,
        "gathered": gathered.codes,
        "gradient of the layer": layer.weight.grad,
        "gradient of the codes": regular.codebook.codes.grad,
    }
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name}: the ranks' codebooks differ"
    for name in ("plain", "early"):
        torch.testing.assert_close(first[name], alone.codes, rtol=1e-5, atol=1e-6)
    for name in ("lonely", "compiled"):
        assert (first[name].norm(dim=-1) > 4).all(), f"{name}: every code starts from the latents of the only rank that has some"
    assert first["revived"].isfinite().all() and len(first["revived"].unique(dim=0)) == 16
