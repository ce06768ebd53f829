"""RAQ on the trunk of VQ-GAN: a deep autoencoder whose codebook has, at inference, as many codes as are asked for.

Source: as `vqkit.models.raq`, whose method is one for any vector-quantized model.
"""

import dataclasses
from dataclasses import dataclass

from vqkit.models.rate_adaptive import RateAdaptiveTokenizer, RateOptions
from vqkit.models.trunk import TrunkConfig, build_trunk


@dataclass(frozen=True, kw_only=True)
class RAQVQGANConfig(RateOptions, TrunkConfig):
    """The fields of `TrunkConfig` and `RateOptions` come with these.

    codebook_size: K, of the source.
    """

    codebook_size: int = 1024


class RAQVQGAN(RateAdaptiveTokenizer):
    """VQ-GAN with source codes and codes generated from them; loss and rates are described in `RateAdaptiveTokenizer`."""

    name = "raq-vqgan"
    Config = RAQVQGANConfig

    def __init__(self, config: RAQVQGANConfig):
        trunk = build_trunk(config, 1)
        quantizer = config.build_rate_adaptive(config.resolved_code_dim, config.codebook_size)
        super().__init__(dataclasses.asdict(config), config.downsampling, trunk, quantizer, config.rate_loss_weights)
