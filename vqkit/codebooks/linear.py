"""A codebook of frozen random vectors under one learned linear map (SimVQ)."""

import torch
from torch import Tensor, nn

from vqkit.codebooks.generated import GeneratedCodebook


class LinearCodebook(GeneratedCodebook):
    """codes = transform(frozen): a step that moves one code moves the space that all of them lie in, so none is left behind.

    Args:
        size, dim: K and the length of a code.
        transform: maps (K, frozen_dim) to (K, dim). Default: ``nn.Linear(frozen_dim, dim, bias=False)``; ``nn.Identity`` leaves the
            codes frozen.
        frozen_dim: length F of a frozen vector. Default: dim.

    frozen: (K, F) buffer, started from a normal distribution of variance 1 / F, never changed. Like any constant it follows
    ``.to(dtype)``. In eval mode the codes are kept, see ``GeneratedCodebook``. Under ``DistributedDataParallel`` the frozen vectors are
    those of the first rank, and the gradients are averaged as those of any parameter.

    Source: Zhu et al. 2024 (arXiv 2411.02038), section 4, where codes = C W.
    """

    def __init__(self, size: int, dim: int, *, transform: nn.Module | None = None, frozen_dim: int | None = None):
        super().__init__(size, dim)
        frozen_dim = dim if frozen_dim is None else frozen_dim
        if frozen_dim < 1:
            raise ValueError(f"frozen_dim: expected at least 1, got {frozen_dim}")
        self.register_buffer("frozen", torch.randn(size, frozen_dim) / frozen_dim**0.5)
        self.transform = nn.Linear(frozen_dim, dim, bias=False) if transform is None else transform

    def _generate(self) -> Tensor:
        codes = self.transform(self.frozen)
        if tuple(codes.shape) != (self.size, self.dim):
            raise ValueError(f"transform: expected a result of shape {(self.size, self.dim)}, got {tuple(codes.shape)}")
        return codes
