"""The convolutional autoencoder that VQ-GAN and VQCT share."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from vqkit.nn import Decoder, Encoder

# by downsampling factor; f4 and f8 as in Rombach et al., arXiv 2112.10752, table 8; f16 as in arXiv 2012.09841
CHANNEL_MULTIPLIERS = {4: (1, 2, 4), 8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4)}


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Encoder and decoder; the defaults are the published f16 ones, 29.3 M and 42.4 M parameters.

    channels: width at multiplier 1.
    channel_multipliers: one a stage, finest first; f = 2 ** (their number - 1). `CHANNEL_MULTIPLIERS` has the published.
    num_res_blocks: of each encoder stage; the decoder has one more.
    attention: in the middle block.
    attention_levels: the stages with attention, 0 the finest, -1 the coarsest. None: the coarsest where `attention`.
    latent_dim: channels between the encoder and the 1x1 convolution to the codes, and back.
    code_dim: length of a code of each part. None: latent_dim.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = CHANNEL_MULTIPLIERS[16]
    num_res_blocks: int = 2
    attention: bool = True
    attention_levels: tuple[int, ...] | None = None
    latent_dim: int = 256
    code_dim: int | None = None

    def __post_init__(self):
        # JSON has lists only
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if self.attention_levels is not None:
            object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers: got {self.channel_multipliers}, expected at least one of at least 1")
        for field in ("channels", "num_res_blocks", "latent_dim", "code_dim"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: got {value}, expected at least 1")

    @property
    def downsampling(self) -> int:
        """f, pixels a side of one position."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def resolved_code_dim(self) -> int:
        return self.latent_dim if self.code_dim is None else self.code_dim


class Trunk(NamedTuple):
    """Pictures -> encoder -> to_codes -> (quantizer) -> from_codes -> decoder -> pictures."""

    encoder: nn.Module
    to_codes: nn.Module
    from_codes: nn.Module
    decoder: nn.Module


def build_trunk(config: TrunkConfig, parts: int) -> Trunk:
    """The four modules, with `parts * code_dim` channels for the quantizer."""
    levels = config.attention_levels
    if levels is None:
        levels = (-1,) if config.attention else ()
    shape = (config.channels, config.channel_multipliers, config.num_res_blocks, config.latent_dim)
    attention = {"attention_levels": levels, "middle_attention": config.attention}
    width = parts * config.resolved_code_dim
    return Trunk(
        encoder=Encoder(*shape, **attention),
        to_codes=nn.Conv2d(config.latent_dim, width, 1),
        from_codes=nn.Conv2d(width, config.latent_dim, 1),
        decoder=Decoder(*shape, **attention),
    )
