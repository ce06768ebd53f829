"""Quantizers on several ranks against one rank on all batches: ``torchrun --nproc-per-node 2 tests/quantizers/data_parallel.py``.

Ends with an AssertionError that names the quantizer where ranks differ from one another or from one.
"""

import copy
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import vqkit
from vqkit.codebooks import AffineCodebook, AnchoredCodebook, EMACodebook
from vqkit.compat.vector_quantize_pytorch import VectorQuantize
from vqkit.quantizers import ResidualQuantizer

STEPS, ROWS, DIM, SIZE = 50, 40, 6, 15

_REVIVED = {"kmeans_init": True, "threshold_ema_dead_code": 1}

# What is deterministic: several ranks learn what one does.
EXACT = {
    "ema": lambda: vqkit.Quantizer(DIM, SIZE),
    "affine": lambda: vqkit.Quantizer(DIM, SIZE, codebook=AffineCodebook(EMACodebook(SIZE, DIM))),
    "anchored": lambda: vqkit.Quantizer(DIM, SIZE, codebook="anchored"),
    "residual": lambda: ResidualQuantizer(dim=DIM, num_quantizers=2, codebook_size=SIZE),
    "compat": lambda: VectorQuantize(DIM, SIZE),
}
# What draws latents: all ranks hold the same bits.
DRAWN = {
    "revived ema": lambda: vqkit.Quantizer(DIM, SIZE, **_REVIVED),
    "revived heads": lambda: vqkit.Quantizer(DIM, SIZE, heads=2, codebook_dim=3, metric="cosine", **_REVIVED),
    "revived residual": lambda: ResidualQuantizer(dim=DIM, num_quantizers=2, codebook_size=SIZE, quantize_dropout=True, **_REVIVED),
    "revived compat": lambda: VectorQuantize(DIM, SIZE, **_REVIVED),
}
# What gradients train, behind a layer.
LEARNED = {
    "learned": lambda: vqkit.Quantizer(DIM, SIZE, codebook="learned"),
    "linear": lambda: vqkit.Quantizer(DIM, SIZE, codebook="linear"),
    "compat, learned": lambda: VectorQuantize(DIM, SIZE, learnable_codebook=True, ema_update=False),
}
# Both: the codes are parameters that the quantizer writes as well.
LEARNED_AND_DRAWN = {
    "revived learned": lambda: vqkit.Quantizer(DIM, SIZE, codebook="learned", **_REVIVED),
    "anchored, probrandom": lambda: vqkit.Quantizer(DIM, SIZE, codebook=AnchoredCodebook(SIZE, DIM, anchor="probrandom")),
    "revived compat, learned": lambda: VectorQuantize(DIM, SIZE, learnable_codebook=True, ema_update=False, **_REVIVED),
}


def built(make, seed=0, layer=False):
    torch.manual_seed(seed)
    quantizer = make()
    return nn.Sequential(nn.Linear(DIM, DIM), quantizer) if layer else quantizer


def observed(quantizer, batches):
    for batch in batches:
        quantizer(batch)
    return quantizer


def trained(model, parameters, batches):
    optimizer = torch.optim.SGD(parameters, 0.1)
    for batch in batches:
        optimizer.zero_grad()
        model(batch)[2].backward()
        optimizer.step()


def sharded(model):
    """Both a part and the whole, as one shards a model."""
    fully_shard(model[1])
    fully_shard(model)
    return model


def state(model):
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in model.state_dict().items()}


def check_ranks_agree(name, found):
    for key, value in found.items():
        everybodys = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(everybodys, value.contiguous())
        assert all(torch.equal(value, other) for other in everybodys), f"{name}: {key} differs between the ranks"


def check_one_collective_a_step(name, quantizer, batches):
    """Whose size does not depend on what a rank has to offer: after the k-means start, with dead codes."""
    sizes, reduce = [], dist.all_reduce

    def noted(tensor, *arguments, **options):
        sizes.append(tensor.numel())
        return reduce(tensor, *arguments, **options)

    dist.all_reduce = noted
    try:
        for step, batch in enumerate(batches):
            quantizer(batch, mask=torch.full((len(batch),), step % 2 == 0 or dist.get_rank() == 0))
    finally:
        dist.all_reduce = reduce
    assert len(sizes) == len(batches) and len(set(sizes)) == 1, f"{name}: all-reduces of {sizes} numbers in {len(batches)} steps"


def check_close(name, found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    batches = torch.randn(STEPS, ranks * ROWS, DIM, generator=torch.Generator().manual_seed(1))
    # Before there is a process group, so that one rank sees everything; and a quantizer that is built before it.
    alone = {name: state(observed(built(make), batches)) for name, make in EXACT.items()}
    for name, make in LEARNED.items():
        model = built(make, layer=True)
        trained(model, model.parameters(), batches)
        alone[name] = state(model)
    early = built(EXACT["ema"])
    dist.init_process_group("gloo")
    own = batches[:, rank * ROWS : (rank + 1) * ROWS]
    for name, make in EXACT.items():
        found = state(observed(early if name == "ema" else built(make), own))
        check_ranks_agree(name, found)
        check_close(name, found, alone[name])
    for name, make in DRAWN.items():
        quantizer = built(make)
        torch.manual_seed(2 + rank)
        for step, batch in enumerate(own):
            # One rank has nothing to offer at every third step, also at the first.
            quantizer(batch, mask=torch.full((ROWS,), rank != 1 or step % 3 > 0))
        found = state(quantizer)
        check_ranks_agree(name, found)
        assert all(value.isfinite().all() for value in found.values()), f"{name}: not finite"
        if name in ("revived ema", "revived heads", "revived compat"):
            check_one_collective_a_step(name, quantizer, own[:4])
    for name, make in (LEARNED | LEARNED_AND_DRAWN).items():
        model = built(make, layer=True)
        whole, shards = DistributedDataParallel(copy.deepcopy(model)), sharded(copy.deepcopy(model))
        for wrapped in (whole, shards):
            torch.manual_seed(2 + rank)
            trained(wrapped, wrapped.parameters(), own)
        found = state(whole.module)
        check_ranks_agree(name, found)
        check_close(f"{name}, FSDP2 against DDP", state(shards), found)
        assert not torch.equal(found["0.weight"], model[0].weight), f"{name}: nothing was learned"
        if name in alone:
            check_close(name, found, alone[name])
    dist.barrier()
    print(f"rank {rank} of {ranks}: equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # Past Python's own end: a thread of the group may abort a process that shuts down around it.
    os._exit(0)
