"""Layers without opinions: what encoders, decoders, discriminators and transfer networks are made of."""

from vqkit.nn.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm
from vqkit.nn.decoder import Decoder
from vqkit.nn.discriminator import PatchDiscriminator
from vqkit.nn.encoder import Encoder
from vqkit.nn.gcn import GraphConvolution, GraphTransfer, MLPTransfer
from vqkit.nn.strided import StridedDecoder, StridedEncoder

__all__ = [
    "AttentionBlock",
    "Decoder",
    "Downsample",
    "Encoder",
    "GraphConvolution",
    "GraphTransfer",
    "MLPTransfer",
    "PatchDiscriminator",
    "ResidualBlock",
    "StridedDecoder",
    "StridedEncoder",
    "Upsample",
    "group_norm",
]
