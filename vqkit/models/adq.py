"""ADQ: a VQ-GAN in which every picture picks the codebook that suits it, many short codes or few long ones.

Source: Chen et al., Balance of Number of Embedding and their Dimensions in Vector Quantization, arXiv 2407.04939.
"""

import dataclasses
from dataclasses import dataclass

from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.quantizers import AdaptiveQuantizer


@dataclass(frozen=True, kw_only=True)
class ADQConfig(TrunkConfig):
    """The fields of `TrunkConfig` come with these; its code_dim is the width in front of the candidates' projections.

    capacity: numbers in each candidate's codebook; its default, 1,024 codes of 64, is ours.
    code_dims: lengths of the candidates' codes.
    temperature: of the Gumbel-softmax that picks a candidate.
    decay, threshold_ema_dead_code, commitment_weight: as in `vqkit.Quantizer`.
    """

    capacity: int = 65_536
    code_dims: tuple[int, ...] = (8, 16, 32, 64, 128)
    temperature: float = 1.0
    decay: float = 0.99
    threshold_ema_dead_code: float = 0.0
    commitment_weight: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "code_dims", tuple(self.code_dims))


class ADQ(Tokenizer):
    """Encoder, 1x1 convolution, one of several quantizers a picture, 1x1 convolution, decoder.

    loss = commitment_weight * mean (P_i z - sg e)^2, with i the picture's candidate and P_i its projection

    Indices (B, h, w) number the codes of all candidates in a row; `vqkit.quantizers.AdaptiveQuantizer` has the method and our readings.
    """

    name = "adq"
    Config = ADQConfig

    def __init__(self, config: ADQConfig):
        fields = ("capacity", "code_dims", "temperature", "decay", "threshold_ema_dead_code", "commitment_weight")
        options = {field: getattr(config, field) for field in fields}
        quantizer = AdaptiveQuantizer(config.resolved_code_dim, **options, channel_first=True)
        weights = {"commitment": config.commitment_weight}
        super().__init__(dataclasses.asdict(config), config.downsampling, build_trunk(config, 1), quantizer, weights)
