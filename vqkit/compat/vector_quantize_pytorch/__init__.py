"""What vector-quantize-pytorch is imported for, under its names: ``sys.modules["vector_quantize_pytorch"] = this module``."""

from vqkit.compat.vector_quantize_pytorch import replacements  # noqa: F401  fills the register of vqkit.accelerate
from vqkit.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

__all__ = ["GroupedResidualVQ", "ResidualVQ", "VectorQuantize"]
