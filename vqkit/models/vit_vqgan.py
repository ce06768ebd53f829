"""ViT-VQGAN: a vision transformer autoencoder whose codes are looked up in few dimensions and on the unit sphere.

Source: Yu et al., Vector-quantized Image Modeling with Improved VQGAN, arXiv 2110.04627.
"""

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from vqkit.models.quantization import QuantizerOptions
from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import Trunk
from vqkit.nn import ViTDecoder, ViTEncoder
from vqkit.objectives.logit_laplace import logit_laplace_picture

# Table 1: layers, width, heads, width of the blocks' networks, of encoder and decoder alike.
SIZES = {"small": (8, 512, 8, 2048), "base": (12, 768, 12, 3072), "large": (32, 1280, 16, 5120)}


@dataclass(frozen=True, kw_only=True)
class ViTVQGANConfig(QuantizerOptions):
    """The defaults are the published small model at 256x256; the fields of `QuantizerOptions` come with them.

    size: "small", "base" or "large": depth, width, heads and hidden of table 1, for those of them that are None.
    decoder_size: the decoder's, where it differs. The published small-base model is a small encoder with a base decoder.
    depth, width, heads, hidden: of encoder and decoder alike, in the place of those of the sizes.
    patch: f, pixels a side of one position.
    grid: side of the map that the position vectors are made for; other maps get them resized.
    code_dim: length of a code, in which the search runs.
    codebook_size: K.
    logit_laplace: the decoder predicts a distribution for each value, trained by `objectives.logit_laplace_loss`; its median is
        the reconstruction.
    dropout: in all blocks.
    """

    size: str = "small"
    decoder_size: str | None = None
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    hidden: int | None = None
    patch: int = 8
    grid: int = 32
    code_dim: int = 32
    codebook_size: int = 8192
    metric: str = "cosine"
    logit_laplace: bool = True
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("size", "decoder_size"):
            value = getattr(self, name)
            if value not in (*SIZES, *((None,) if name == "decoder_size" else ())):
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, SIZES))}")
        for name in ("depth", "width", "heads", "hidden", "patch", "grid", "code_dim", "codebook_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        for depth, width, heads, hidden in (self.encoder_shape, self.decoder_shape):
            if width % heads:
                raise ValueError(f"heads: got {heads}, expected a divisor of the width {width}")

    @property
    def encoder_shape(self) -> tuple[int, int, int, int]:
        """Depth, width, heads, hidden."""
        return self._shape(self.size)

    @property
    def decoder_shape(self) -> tuple[int, int, int, int]:
        """Depth, width, heads, hidden."""
        return self._shape(self.decoder_size or self.size)

    def _shape(self, size: str) -> tuple[int, int, int, int]:
        given = (self.depth, self.width, self.heads, self.hidden)
        return tuple(default if value is None else value for value, default in zip(given, SIZES[size]))


class ViTVQGAN(Tokenizer):
    """Patches through a transformer, a linear map to few dimensions, the nearest code by cosine, and the same back.

    loss = codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2, with z and e on the unit sphere
    """

    name = "vit-vqgan"
    Config = ViTVQGANConfig

    def __init__(self, config: ViTVQGANConfig):
        (encoder_depth, encoder_width, *encoder), (decoder_depth, decoder_width, *decoder) = config.encoder_shape, config.decoder_shape
        channels = 6 if config.logit_laplace else 3
        trunk = Trunk(
            encoder=ViTEncoder(config.patch, config.grid, encoder_width, encoder_depth, *encoder, dropout=config.dropout),
            to_codes=nn.Conv2d(encoder_width, config.code_dim, 1),
            from_codes=nn.Conv2d(config.code_dim, decoder_width, 1),
            decoder=ViTDecoder(config.patch, config.grid, decoder_width, decoder_depth, *decoder, out_channels=channels,
                               dropout=config.dropout),
        )
        quantizer = config.build(config.code_dim, (config.codebook_size,), (1,))
        super().__init__(dataclasses.asdict(config), config.patch, trunk, quantizer, config.loss_weights)
        self.logit_laplace = config.logit_laplace

    def _reconstruct(self, quantized: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        decoded = self.decoder(self.from_codes(quantized))
        if not self.logit_laplace:
            return decoded, None
        mean, log_scale = decoded.chunk(2, 1)
        return logit_laplace_picture(mean), (mean, log_scale)
