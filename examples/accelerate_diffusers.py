"""diffusers' VQModel, the first stage of latent diffusion's vector-quantized models.

    model = VQModel.from_pretrained(...)
    + vqkit.accelerate(model)

    python examples/accelerate_diffusers.py

builds a small VQModel from a configuration, so that nothing is downloaded, and encodes and decodes pictures before and after.
"""

import argparse
import copy

import torch
from comparison import report, timed
from diffusers import VQModel

import vqkit

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--codebook-size", type=int, default=16384)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    before = VQModel(block_out_channels=(16,), norm_num_groups=8, latent_channels=4, num_vq_embeddings=arguments.codebook_size,
                     vq_embed_dim=4).eval()
    # As far apart as trained codes are. Among fresh ones, all within 1/K of the origin, diffusers' cdist picks a wrong code in a hundred.
    torch.nn.init.normal_(before.quantize.embedding.weight)
    after = copy.deepcopy(before)
    print(vqkit.accelerate(after))
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(before(images).sample, after(images).sample, atol=1e-5)
        # The quantizer alone: what is around it is the same, and larger.
        latents = before.encode(images).latents
        report(timed(lambda: before.quantize(latents)[0].sum(), arguments.steps),
               timed(lambda: after.quantize(latents)[0].sum(), arguments.steps))
