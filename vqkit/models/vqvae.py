"""VQ-VAE: a small strided autoencoder with one codebook, f = 4.

Source: van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937.
"""

import dataclasses
from dataclasses import dataclass

from torch import nn

from vqkit.models.quantization import QuantizerOptions
from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import Trunk
from vqkit.nn import StridedDecoder, StridedEncoder


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(QuantizerOptions):
    """The defaults are the published ones; the fields of `QuantizerOptions` come with them.

    channels, residual_channels: widths of the maps and inside the residual blocks.
    num_res_blocks: of the encoder, and of the decoder.
    code_dim, codebook_size: length and number of the codes.
    """

    channels: int = 128
    residual_channels: int = 32
    num_res_blocks: int = 2
    code_dim: int = 64
    codebook_size: int = 512

    def __post_init__(self):
        for field, least in {"channels": 2, "residual_channels": 1, "num_res_blocks": 0, "code_dim": 1, "codebook_size": 1}.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least {least}")


class VQVAE(Tokenizer):
    """Two strided convolutions, a residual stack, one code a position; trained with mean squared error.

    loss = codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2
    """

    name = "vqvae"
    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig):
        # The trunk first: a seed draws the weights in this order.
        trunk = build_strided_trunk(config)
        quantizer = config.build(config.code_dim, (config.codebook_size,), (1,))
        super().__init__(dataclasses.asdict(config), 4, trunk, quantizer, config.loss_weights)


def build_strided_trunk(config: VQVAEConfig) -> Trunk:
    """The modules around the quantizer."""
    return Trunk(
        encoder=StridedEncoder(config.channels, config.residual_channels, config.num_res_blocks),
        to_codes=nn.Conv2d(config.channels, config.code_dim, 1),
        from_codes=nn.Identity(),
        decoder=StridedDecoder(config.code_dim, config.channels, config.residual_channels, config.num_res_blocks),
    )
