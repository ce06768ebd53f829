"""One line switches a model from vector-quantize-pytorch to vqkit: the import.

    - from vector_quantize_pytorch import VectorQuantize
    + from vqkit.compat.vector_quantize_pytorch import VectorQuantize

    python examples/switch_vector_quantize_pytorch.py

trains the same small autoencoder with both, from the same weights on the same pictures, and compares losses and time.
"""

import argparse

import torch
from comparison import report, timed
from torch import nn

from vqkit.compat.vector_quantize_pytorch import VectorQuantize

try:
    from vector_quantize_pytorch import VectorQuantize as TheirVectorQuantize
except ImportError:
    TheirVectorQuantize = None


class Autoencoder(nn.Module):
    """Somebody's model: what it is built with is all that changes."""

    def __init__(self, vector_quantize: type[nn.Module], codebook_size: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Conv2d(32, 32, 1))
        self.quantizer = vector_quantize(dim=32, codebook_size=codebook_size, decay=0.9, commitment_weight=0.25, accept_image_fmap=True)
        self.decoder = nn.Sequential(nn.Conv2d(32, 32, 1), nn.GELU(), nn.ConvTranspose2d(32, 3, 4, 4))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        quantized, _, commitment = self.quantizer(self.encoder(images))
        return self.decoder(quantized), commitment


def train(vector_quantize: type[nn.Module], steps: int, codebook_size: int) -> tuple[list[float], float]:
    torch.manual_seed(0)
    model = Autoencoder(vector_quantize, codebook_size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = iter(torch.rand(steps, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1)))

    def step() -> torch.Tensor:
        images = next(batches)
        reconstruction, commitment = model(images)
        loss = (reconstruction - images).square().mean() + commitment.sum()
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
    before = None
    if TheirVectorQuantize is None:
        print("vector-quantize-pytorch is not installed: only the new side runs")
    else:
        before = train(TheirVectorQuantize, arguments.steps, arguments.codebook_size)
    report(before, train(VectorQuantize, arguments.steps, arguments.codebook_size))
