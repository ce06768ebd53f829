"""Vector quantization for PyTorch: exact fused kernels, a drop-in quantizer and a tokenizer zoo.

Public names are loaded on first use, so that ``import vqkit`` is quick, imports no triton and starts no CUDA.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Quantizer": "vqkit.quantizers",
    "ProductQuantizer": "vqkit.quantizers",
    "BackendError": "vqkit.backend",
    "use_backend": "vqkit.backend",
    "accelerate": "vqkit.compat.accelerate",
    "restore": "vqkit.compat.accelerate",
}
_MODULES = ("backend", "codebooks", "compat", "kernels", "language", "metrics", "models", "native", "nn", "objectives", "ops", "quantizers")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"vqkit.{name}")
    raise AttributeError(f"module 'vqkit' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__():
    return sorted(__all__)
