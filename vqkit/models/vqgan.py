"""VQ-GAN: a deep convolutional autoencoder with one codebook, or a product of several.

Source: Esser et al., Taming Transformers for High-Resolution Image Synthesis, arXiv 2012.09841.
"""

import dataclasses
from dataclasses import dataclass

from vqkit.models.quantization import QuantizerOptions, resolve_sizes
from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import TrunkConfig, build_trunk


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(TrunkConfig, QuantizerOptions):
    """The defaults are the published f16 model; the fields of `TrunkConfig` and `QuantizerOptions` come with them.

    codebook_size: K, for all parts alike or one number a part.
    selections: one entry a part: how many nearest codes are averaged. (1,) is plain VQ-GAN; (2, 1) has VQCT's two halves
        without its words, each of code_dim channels.
    quantize: False leaves the quantizer out: a plain autoencoder, the ceiling of what quantizing can reach.
    """

    codebook_size: int | tuple[int, ...] = 1024
    selections: tuple[int, ...] = (1,)
    quantize: bool = True

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "selections", tuple(self.selections))
        sizes = resolve_sizes(self.codebook_size, self.selections)
        if not isinstance(self.codebook_size, int):
            object.__setattr__(self, "codebook_size", sizes)


class VQGAN(Tokenizer):
    """Encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder.

    loss = codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2, summed over the parts
    """

    name = "vqgan"
    Config = VQGANConfig

    def __init__(self, config: VQGANConfig):
        trunk = build_trunk(config, len(config.selections))
        sizes = resolve_sizes(config.codebook_size, config.selections)
        quantizer = config.build(config.resolved_code_dim, sizes, config.selections) if config.quantize else None
        super().__init__(dataclasses.asdict(config), config.downsampling, trunk, quantizer, config.loss_weights)
