"""What tokenizers have in common whose codebook has, at inference, as many codes as are asked for.

Source: Seo and Kang, Rate-Adaptive Quantization: A Multi-Rate Codebook Adaptation for Vector Quantization-based Generative Models,
arXiv 2405.14222.
"""

from dataclasses import dataclass

from torch import Tensor

from vqkit.codebooks.rate_adaptive import RateAdaptiveCodebook, resize_codes
from vqkit.models.quantization import QuantizerOptions
from vqkit.models.tokenizer import Tokenizer, TokenizerOutput
from vqkit.nn import CodeGenerator
from vqkit.quantizers import RateAdaptiveQuantizer

GENERATORS = ("recurrent", "resize")


@dataclass(frozen=True, kw_only=True)
class RateOptions(QuantizerOptions):
    """The quantizer's part of a configuration; the fields of `QuantizerOptions` come with these, which describe the source codes.

    rates: least and largest number of codes that training draws. Other rates may be asked for, too.
    generator: what makes codes of the source's: "recurrent", a network that is trained along; "resize", a k-means or its inverse, which
        needs no training: the model then trains as the plain one, and may take its weights.
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

    def build_rate_adaptive(self, code_dim: int, codebook_size: int) -> RateAdaptiveQuantizer:
        """The quantizer over (B, code_dim, h, w)."""
        trained = self.generator == "recurrent"
        generate = CodeGenerator(code_dim, self.generator_layers, self.generator_dropout) if trained else resize_codes
        codebook = RateAdaptiveCodebook(self.build_codebook(code_dim, codebook_size), generate)
        options = {"metric": self.metric, "commitment_weight": self.commitment_weight, "gradient": self.gradient}
        return RateAdaptiveQuantizer(codebook, self.rates if trained else None, channel_first=True, **options)

    @property
    def rate_loss_weights(self) -> dict[str, float]:
        """By the names of the losses of source and generated codes."""
        return self.loss_weights | {f"adapted_{name}": weight for name, weight in self.loss_weights.items()}


class RateAdaptiveTokenizer(Tokenizer):
    """A tokenizer with source codes and codes generated from them.

    loss = source loss + adapted loss, each codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2, the first
    without its first term for codes that follow running means. With the generator "resize" the source loss alone.

    In training the first half of a batch is reconstructed from the source codes and the second half from generated ones, as many as
    were drawn, so that one reconstruction loss trains both (our reading); give it batches of at least two. Usage, perplexity and parts
    are those of the source codes. In eval mode `rate` says how many codes there are; None is the source.
    """

    quantizer: RateAdaptiveQuantizer

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
