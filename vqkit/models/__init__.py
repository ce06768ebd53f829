"""Tokenizers: an encoder, a quantizer and a decoder, by name, with their checkpoints."""

from vqkit.models.quantization import QuantizerOptions
from vqkit.models.registry import create, from_pretrained, names
from vqkit.models.tokenizer import Tokenizer, TokenizerOutput
from vqkit.models.trunk import CHANNEL_MULTIPLIERS
from vqkit.models.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from vqkit.models.vqct import VQCT, VQCTConfig
from vqkit.models.vqgan import VQGAN, VQGANConfig
from vqkit.models.vqvae import VQVAE, VQVAEConfig

__all__ = [
    "CHANNEL_MULTIPLIERS",
    "VQCT",
    "VQGAN",
    "VQVAE",
    "QuantizerOptions",
    "Tokenizer",
    "TokenizerOutput",
    "VQCTConfig",
    "VQGANConfig",
    "VQVAEConfig",
    "ViTVQGAN",
    "ViTVQGANConfig",
    "create",
    "from_pretrained",
    "names",
]
