"""What vector-quantize-pytorch is imported for, under its names: ``sys.modules["vector_quantize_pytorch"] = this module``."""

from vqkit.compat.vector_quantize_pytorch import replacements  # noqa: F401  fills the register of vqkit.accelerate
from vqkit.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from vqkit.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from vqkit.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer
from vqkit.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from vqkit.compat.vector_quantize_pytorch.sim_vq import SimVQ
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

__all__ = ["FSQ", "LFQ", "GroupedResidualVQ", "RandomProjectionQuantizer", "ResidualVQ", "SimVQ", "VectorQuantize"]
