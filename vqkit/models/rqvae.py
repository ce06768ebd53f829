"""RQ-VAE: a VQ-GAN whose positions are sums of several codes of one shared codebook.

Source: Lee et al., Autoregressive Image Generation using Residual Quantization, arXiv 2203.01941.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.quantizers import ResidualQuantizer


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(TrunkConfig):
    """The defaults are the published 8x8x4 codes of 256x256 pictures, f32; the fields of `TrunkConfig` come with these.

    depth: codes that are summed at a position.
    codebook_size: K.  shared_codebook: of all depths together (published); False gives each depth one of its own.
    decay, kmeans_init, threshold_ema_dead_code: of codes that follow their latents' running means, as in `vqkit.Quantizer`. A
        code whose running use falls below the threshold begins again from a latent of the batch.
    commitment_weight: of the mean over the depths.
    gradient: "straight_through" or "rotation".
    """

    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    depth: int = 4
    codebook_size: int = 16384
    shared_codebook: bool = True
    decay: float = 0.99
    kmeans_init: bool = False
    threshold_ema_dead_code: float = 1.0
    commitment_weight: float = 0.25
    gradient: str = "straight_through"

    def __post_init__(self):
        super().__post_init__()
        for field in ("depth", "codebook_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")


class RQVAE(Tokenizer):
    """VQ-GAN with z ~ e_1 + ... + e_D, each e_d the code nearest to what the ones before it have left over.

    loss = commitment_weight * mean over d of mean (z - sg (e_1 + ... + e_d))^2

    `losses` has the sum over the depths. Indices are (B, h, w, D), codes and usage are counted for each depth: a shared codebook
    is reported D times, with the codes that each depth selects.
    """

    name = "rqvae"
    Config = RQVAEConfig

    def __init__(self, config: RQVAEConfig):
        trunk = build_trunk(config, 1)
        quantizer = ResidualQuantizer(
            dim=config.resolved_code_dim,
            num_quantizers=config.depth,
            codebook_size=config.codebook_size,
            shared_codebook=config.shared_codebook,
            gradient=config.gradient,
            channel_first=True,
            codebook="ema",
            decay=config.decay,
            kmeans_init=config.kmeans_init,
            threshold_ema_dead_code=config.threshold_ema_dead_code,
            commitment_weight=config.commitment_weight,
        )
        weights = {"commitment": config.commitment_weight / config.depth}
        super().__init__(dataclasses.asdict(config), config.downsampling, trunk, quantizer, weights)

    def _reconstruct(self, quantized: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        # Sums come out in another memory layout than decoded codes, and convolutions may round differently in each.
        return super()._reconstruct(quantized.contiguous(memory_format=torch.channels_last))
