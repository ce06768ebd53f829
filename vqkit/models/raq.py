"""RAQ-VAE: a VQ-VAE whose codebook has, at inference, as many codes as are asked for.

Source: Seo and Kang, Rate-Adaptive Quantization: A Multi-Rate Codebook Adaptation for Vector Quantization-based Generative Models,
arXiv 2405.14222.
"""

import dataclasses
from dataclasses import dataclass

from vqkit.models.rate_adaptive import RateAdaptiveTokenizer, RateOptions
from vqkit.models.vqvae import VQVAEConfig, build_strided_trunk


@dataclass(frozen=True, kw_only=True)
class RAQConfig(RateOptions, VQVAEConfig):
    """The defaults are the published ones; the fields of `VQVAEConfig` and `RateOptions` come with them."""


class RAQ(RateAdaptiveTokenizer):
    """VQ-VAE with source codes and codes generated from them; loss and rates are described in `RateAdaptiveTokenizer`."""

    name = "raq"
    Config = RAQConfig

    def __init__(self, config: RAQConfig):
        # The quantizer first: a seed draws the weights in this order.
        quantizer = config.build_rate_adaptive(config.code_dim, config.codebook_size)
        super().__init__(dataclasses.asdict(config), 4, build_strided_trunk(config), quantizer, config.rate_loss_weights)
