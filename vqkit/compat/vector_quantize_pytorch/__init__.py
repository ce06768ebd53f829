"""What vector-quantize-pytorch is imported for, under its names: ``sys.modules["vector_quantize_pytorch"] = this module``."""

from vqkit.compat.vector_quantize_pytorch import replacements  # noqa: F401  fills the register of vqkit.accelerate
from vqkit.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from vqkit.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from vqkit.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer
from vqkit.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from vqkit.compat.vector_quantize_pytorch.sim_vq import SimVQ
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

__all__ = ["FSQ", "LFQ", "GroupedResidualVQ", "RandomProjectionQuantizer", "ResidualVQ", "SimVQ", "VectorQuantize"]

# What it has besides, and what vqkit has that is nearest to it.
_NOT_HERE = {
    "ResidualFSQ": "vqkit.quantizers.ResidualQuantizer of FiniteScalarQuantizer stages",
    "GroupedResidualFSQ": "vqkit.quantizers.ResidualQuantizer of FiniteScalarQuantizer stages for each group",
    "ResidualLFQ": "vqkit.quantizers.ResidualQuantizer of LookupFreeQuantizer stages",
    "GroupedResidualLFQ": "vqkit.quantizers.ResidualQuantizer of LookupFreeQuantizer stages for each group",
    "ResidualSimVQ": "vqkit.quantizers.ResidualQuantizer(codebook='linear')",
    "BinaryMapper": "vqkit.quantizers.GumbelQuantizer, LookupFreeQuantizer",
    "EvoLFQ": "LFQ",
    "FSP": "FSQ with noise_dropout",
    "HierarchicalVQ": "vqkit.quantizers.MultiScaleQuantizer",
    "LatentQuantize": "FSQ",
    "Sequential": None,
}


def __getattr__(name: str):
    if name not in _NOT_HERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    nearest = f"; nearest to it is {_NOT_HERE[name]}" if _NOT_HERE[name] else ""
    # As an import says it; what an AttributeError says is lost in ``from ... import``.
    raise ImportError(f"{name}: vqkit has no such class of vector-quantize-pytorch{nearest}", name=__name__)
