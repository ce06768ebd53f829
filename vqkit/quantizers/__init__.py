"""Quantizers: a search plus a codebook. A new kind is one new file."""

from vqkit.quantizers.product import ProductQuantizer
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer

__all__ = ["ProductQuantizer", "Quantized", "Quantizer"]
