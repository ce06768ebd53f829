"""Quantizers: a search plus a codebook. A new kind is one new file."""

from vqkit.quantizers.adaptive import AdaptiveQuantizer
from vqkit.quantizers.finite_scalar import FiniteScalarQuantizer
from vqkit.quantizers.grouped_residual import GroupedResidualQuantizer
from vqkit.quantizers.gumbel import GumbelQuantizer
from vqkit.quantizers.implicit import ImplicitQuantizer, ImplicitResidualQuantizer
from vqkit.quantizers.lookup_free import LookupFreeQuantizer
from vqkit.quantizers.multi_scale import MultiScaleQuantizer
from vqkit.quantizers.product import ProductQuantizer
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.random_projection import RandomProjectionQuantizer
from vqkit.quantizers.rate_adaptive import RateAdaptiveQuantizer
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.quantizers.semantic import SemanticQuantizer

__all__ = [
    "AdaptiveQuantizer",
    "FiniteScalarQuantizer",
    "GroupedResidualQuantizer",
    "GumbelQuantizer",
    "ImplicitQuantizer",
    "ImplicitResidualQuantizer",
    "LookupFreeQuantizer",
    "MultiScaleQuantizer",
    "ProductQuantizer",
    "Quantized",
    "Quantizer",
    "RandomProjectionQuantizer",
    "RateAdaptiveQuantizer",
    "ResidualQuantizer",
    "SemanticQuantizer",
]
