"""Models whose training draws or chooses something keep one codebook on two ranks; with masks two ranks learn what one would."""


import torch
from safetensors.torch import load_file

from vqkit.models import create

_TRUNK = {"channels": 8, "channel_multipliers": (1, 2, 2), "num_res_blocks": 1, "latent_dim": 12}
_MODELS = {
    "raq": {"channels": 16, "residual_channels": 8, "code_dim": 6, "codebook_size": 32, "rates": (2, 40)},
    "adq": _TRUNK | {"capacity": 96, "code_dims": (6, 12)},
    "sgc-vqgan": _TRUNK | {"codebook_size": 24, "classes": 5},
}
_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from safetensors.torch import save_file
from vqkit.models import create

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, generator = dist.get_rank(), torch.Generator().manual_seed(1)
images, mask = torch.randn(2, 2, 2, 3, 16, 16, generator=generator), torch.randint(-1, 5, (2, 2, 2, 16, 16), generator=generator)
# No class is known to the second rank in the second step, nor is a mask given.
for name, config in MODELS.items():
    torch.manual_seed(0)
    model = create(name, **config)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        masks = [mask[step, rank]] if name == "sgc-vqgan" and (rank, step) != (1, 1) else []
        output = parallel(images[step, rank], *masks)
        optimizer.zero_grad()
        (output.reconstruction.square().mean() + output.loss).backward()
        optimizer.step()
    save_file(model.quantizer.state_dict(), f"{sys.argv[1]}/{name}{rank}.safetensors")
dist.destroy_process_group()
os._exit(0)
"""


def test_two_ranks_keep_one_codebook(tmp_path, two_ranks):
    two_ranks(f"MODELS = {_MODELS}\n{_PROGRAM}")
    for name in _MODELS:
        first, second = (load_file(tmp_path / f"{name}{rank}.safetensors") for rank in (0, 1))
        shared = [key for key in first if "monitor" not in key]
        assert shared and all(torch.equal(first[key], second[key]) for key in shared), name
    generator = torch.Generator().manual_seed(1)
    images, mask = torch.randn(2, 2, 2, 3, 16, 16, generator=generator), torch.randint(-1, 5, (2, 2, 2, 16, 16), generator=generator)
    mask[1, 1] = -1
    torch.manual_seed(0)
    model = create("sgc-vqgan", **_MODELS["sgc-vqgan"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        output = model(images[step].flatten(0, 1), mask[step].flatten(0, 1))
        optimizer.zero_grad()
        (output.reconstruction.square().mean() + output.loss).backward()
        optimizer.step()
    for key, value in model.quantizer.codebook.state_dict().items():
        torch.testing.assert_close(first[f"codebook.{key}"], value, rtol=1e-4, atol=1e-5)
