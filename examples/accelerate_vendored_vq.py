"""A model with taming-transformers' quantizer, as latent diffusion, MaskGIT ports and many others carry it in their own tree.

    + vqkit.accelerate(model)

after the model is built or its checkpoint is loaded. Weights stay the same tensors, so an optimizer made before goes on; the state dict
keeps its names, so old and new checkpoints are exchangeable.

    python examples/accelerate_vendored_vq.py
"""

import argparse
import copy

import torch
from comparison import report, timed
from torch import nn

import vqkit


class VectorQuantizer2(nn.Module):
    """The usual N x K way, in the interface that those trees have."""

    def __init__(self, n_e: int, e_dim: int, beta: float, remap=None, sane_index_shape: bool = False, legacy: bool = True):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
        self.remap, self.re_embed, self.sane_index_shape = remap, n_e, sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, z: torch.Tensor, temp=None, rescale_logits: bool = False, return_logits: bool = False):
        rows = z.movedim(1, -1)
        flat, codes = rows.reshape(-1, self.e_dim), self.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
        indices = distances.argmin(1)
        quantized = self.embedding(indices).view(rows.shape)
        first, second = (quantized.detach() - rows).square().mean(), (quantized - rows.detach()).square().mean()
        loss = first + self.beta * second if self.legacy else self.beta * first + second
        quantized = rows + (quantized - rows).detach()
        return quantized.movedim(-1, 1), loss, (None, None, indices)


class VQModel(nn.Module):
    """Somebody's first stage."""

    def __init__(self, codes: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.SiLU(), nn.Conv2d(64, 32, 1))
        self.quantize = VectorQuantizer2(codes, 32, beta=0.25)
        self.decoder = nn.Sequential(nn.Conv2d(32, 64, 1), nn.SiLU(), nn.ConvTranspose2d(64, 3, 4, 4))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized, loss, _ = self.quantize(self.encoder(images))
        return self.decoder(quantized), loss


def train(model: VQModel, steps: int) -> tuple[list[float], float]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = iter(torch.rand(steps, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1)))

    def step() -> torch.Tensor:
        images = next(batches)
        reconstruction, loss = model(images)
        loss = loss + (reconstruction - images).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return timed(step, steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--codebook-size", type=int, default=8192)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    before = VQModel(arguments.codebook_size)
    after = copy.deepcopy(before)
    print(vqkit.accelerate(after))
    assert list(after.state_dict()) == list(before.state_dict())
    report(train(before, arguments.steps), train(after, arguments.steps))
