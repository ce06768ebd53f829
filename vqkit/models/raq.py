"""RAQ-VAE: a VQ-VAE whose codebook has, at inference, as many codes as are asked for.

Source: Seo and Kang, Rate-Adaptive Quantization: A Multi-Rate Codebook Adaptation for Vector Quantization-based Generative Models,
arXiv 2405.14222.
"""

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from vqkit.codebooks.rate_adaptive import RateAdaptiveCodebook, resize_codes
from vqkit.models.tokenizer import Tokenizer, TokenizerOutput
from vqkit.models.vqvae import VQVAEConfig, build_strided_trunk
from vqkit.nn import CodeGenerator
from vqkit.quantizers import RateAdaptiveQuantizer

GENERATORS = ("recurrent", "resize")


@dataclass(frozen=True, kw_only=True)
class RAQConfig(VQVAEConfig):
    """The defaults are the published ones; the fields of `VQVAEConfig` come with them.

    rates: least and largest number of codes that training draws. Other rates may be asked for, too.
    generator: what makes codes of the source's: "recurrent", a network that is trained along; "resize", a k-means or its inverse, which
        needs no training: the model then trains as plain VQ-VAE, and may take a VQ-VAE's weights.
    generator_layers, generator_dropout: of "recurrent".
    """

    codebook: str = "ema"
    rates: tuple[int, int] = (16, 2048)
    generator: str = "recurrent"
    generator_layers: int = 2
    generator_dropout: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "rates", tuple(self.rates))
        if self.generator not in GENERATORS:
            raise ValueError(f"generator: got {self.generator!r}, expected one of {', '.join(map(repr, GENERATORS))}")
        if self.generator_layers < 1:
            raise ValueError(f"generator_layers: got {self.generator_layers}, expected at least 1")
        if not 0 <= self.generator_dropout < 1:
            raise ValueError(f"generator_dropout: got {self.generator_dropout}, expected 0 <= generator_dropout < 1")


class RAQ(Tokenizer):
    """VQ-VAE with source codes and codes generated from them.

    loss = source loss + adapted loss, each codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2, the first
    without its first term for codes that follow running means. With the generator "resize" the source loss alone.

    In training the first half of a batch is reconstructed from the source codes and the second half from generated ones, as many as
    were drawn, so that one reconstruction loss trains both (our reading); give it batches of at least two. Usage, perplexity and parts
    are those of the source codes. In eval mode `rate` says how many codes there are; None is the source.
    """

    name = "raq"
    Config = RAQConfig

    def __init__(self, config: RAQConfig):
        trained = config.generator == "recurrent"
        generate = CodeGenerator(config.code_dim, config.generator_layers, config.generator_dropout) if trained else resize_codes
        codebook = RateAdaptiveCodebook(config.build_codebook(config.code_dim, config.codebook_size), generate)
        options = {"metric": config.metric, "commitment_weight": config.commitment_weight, "gradient": config.gradient}
        quantizer = RateAdaptiveQuantizer(codebook, config.rates if trained else None, channel_first=True, **options)
        weights = config.loss_weights | {f"adapted_{name}": weight for name, weight in config.loss_weights.items()}
        super().__init__(dataclasses.asdict(config), 4, build_strided_trunk(config), quantizer, weights)

    def forward(self, images: Tensor, rate: int | None = None) -> TokenizerOutput:
        """As `Tokenizer.forward`, with this many codes; in training, in the place of a drawn number."""
        return self._output(self.quantizer(self._latents(images), rate=rate))

    def encode(self, images: Tensor, rate: int | None = None) -> Tensor:
        """As `Tokenizer.encode`, with this many codes."""
        return self.quantizer.encode(self._latents(images), rate=rate)

    def decode(self, indices: Tensor, rate: int | None = None) -> Tensor:
        """As `Tokenizer.decode`, of indices encoded at this rate."""
        if rate is None:
            return super().decode(indices)
        if indices.ndim != 3:
            raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected (B, h, w)")
        dtype = next(self.to_codes.parameters()).dtype
        return self._reconstruct(self.quantizer.decode(indices, rate=rate, dtype=dtype))[0].clamp(-1, 1)
