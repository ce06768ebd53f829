"""Layers without opinions: what encoders, decoders, discriminators and transfer networks are made of."""

from vqkit.nn.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm
from vqkit.nn.code_generator import CodeGenerator
from vqkit.nn.decoder import Decoder
from vqkit.nn.discriminator import PatchDiscriminator
from vqkit.nn.encoder import Encoder
from vqkit.nn.gat import GraphAttention, GraphAttentionTransfer
from vqkit.nn.gcn import GraphConvolution, GraphTransfer, LinearTransfer, MLPTransfer, NoTransfer
from vqkit.nn.strided import StridedDecoder, StridedEncoder
from vqkit.nn.style_discriminator import StyleDiscriminator
from vqkit.nn.transformer import SelfAttention, TransformerBlock
from vqkit.nn.vit import ViTDecoder, ViTEncoder

__all__ = [
    "AttentionBlock",
    "CodeGenerator",
    "Decoder",
    "Downsample",
    "Encoder",
    "GraphAttention",
    "GraphAttentionTransfer",
    "GraphConvolution",
    "GraphTransfer",
    "LinearTransfer",
    "MLPTransfer",
    "NoTransfer",
    "PatchDiscriminator",
    "ResidualBlock",
    "SelfAttention",
    "StridedDecoder",
    "StridedEncoder",
    "StyleDiscriminator",
    "TransformerBlock",
    "Upsample",
    "ViTDecoder",
    "ViTEncoder",
    "group_norm",
]
