"""A training script with its own quantizer, and the same with vqkit's: the loss, the gradients and the codebook are kept.

    python examples/plain_training_script.py

"before" is what most scripts hold: all N x K distances, an argmin, an embedding, the straight-through trick, two losses.
"after" is vqkit.Quantizer(codebook="learned") over the same weights.
"""

import argparse
import copy

import torch
from comparison import report, timed
from torch import nn

import vqkit


class PlainQuantizer(nn.Module):
    """Before."""

    def __init__(self, codebook_size: int, dim: int):
        super().__init__()
        self.codes = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        indices = torch.cdist(x.detach(), self.codes.detach()).argmin(-1)
        quantized = self.codes[indices]
        loss = (quantized - x.detach()).square().mean() + 0.25 * (x - quantized.detach()).square().mean()
        return x + (quantized - x).detach(), indices, loss


def quantizer_of(plain: PlainQuantizer) -> vqkit.Quantizer:
    """After."""
    size, dim = plain.codes.shape
    quantizer = vqkit.Quantizer(dim, size, codebook="learned", commitment_weight=0.25)
    quantizer.codebook.codes = copy.deepcopy(plain.codes)
    return quantizer


def train(encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, steps: int) -> tuple[list[float], float]:
    model = nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = iter(torch.randn(steps, 4096, 48, generator=torch.Generator().manual_seed(1)))

    def step() -> torch.Tensor:
        x = next(batches)
        quantized, _, loss = quantizer(encoder(x))
        loss = loss + (decoder(quantized) - x).square().mean()
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
    encoder, decoder = nn.Linear(48, 16), nn.Linear(16, 48)
    plain = PlainQuantizer(arguments.codebook_size, 16)
    twins = copy.deepcopy(encoder), quantizer_of(plain), copy.deepcopy(decoder)
    report(train(encoder, plain, decoder, arguments.steps), train(*twins, arguments.steps))
