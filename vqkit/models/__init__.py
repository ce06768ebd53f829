"""Tokenizers, an encoder, a quantizer and a decoder, and priors over their codes: by name, with their checkpoints."""

from vqkit.models.adq import ADQ, ADQConfig
from vqkit.models.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from vqkit.models.masked_prior import MaskedPrior, MaskedPriorConfig
from vqkit.models.prior import Prior, PriorConfig
from vqkit.models.quantization import QuantizerOptions
from vqkit.models.raq import RAQ, RAQConfig
from vqkit.models.raq_vqgan import RAQVQGAN, RAQVQGANConfig
from vqkit.models.rate_adaptive import RateAdaptiveTokenizer
from vqkit.models.registry import create, create_prior, from_pretrained, names, prior_names
from vqkit.models.rqvae import RQVAE, RQVAEConfig
from vqkit.models.segments import ABSENT, Segment, TokenLayout
from vqkit.models.sgc_vqgan import SGCVQGAN, SGCVQGANConfig
from vqkit.models.token_prior import TokenPrior
from vqkit.models.token_sampling import Sampling
from vqkit.models.tokenizer import Tokenizer, TokenizerOutput
from vqkit.models.trunk import CHANNEL_MULTIPLIERS
from vqkit.models.v2l import V2L, V2LConfig
from vqkit.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqkit.models.vqct import VQCT, VQCTConfig
from vqkit.models.vqgan import VQGAN, VQGANConfig
from vqkit.models.vqvae import VQVAE, VQVAEConfig

__all__ = [
    "ABSENT",
    "ADQ",
    "CHANNEL_MULTIPLIERS",
    "RAQ",
    "RAQVQGAN",
    "RQVAE",
    "SGCVQGAN",
    "V2L",
    "VQCT",
    "VQGAN",
    "VQVAE",
    "ADQConfig",
    "DiffusionPrior",
    "DiffusionPriorConfig",
    "MaskedPrior",
    "MaskedPriorConfig",
    "Prior",
    "PriorConfig",
    "QuantizerOptions",
    "RAQConfig",
    "RAQVQGANConfig",
    "RQVAEConfig",
    "RateAdaptiveTokenizer",
    "SGCVQGANConfig",
    "Sampling",
    "Segment",
    "TokenLayout",
    "TokenPrior",
    "Tokenizer",
    "TokenizerOutput",
    "V2LConfig",
    "VQCTConfig",
    "VQGANConfig",
    "VQVAEConfig",
    "ViTVQGAN",
    "ViTVQGANConfig",
    "create",
    "create_prior",
    "from_pretrained",
    "names",
    "prior_names",
]
