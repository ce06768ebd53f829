"""A codebook of free parameters, trained by the gradient of the codebook loss."""

import torch
from torch import Tensor, nn

from vqkit.codebooks.stored import StoredCodebook


class LearnedCodebook(StoredCodebook):
    """K vectors as an ``nn.Parameter``, started uniformly in (-1/K, 1/K).

    The arguments are those of ``StoredCodebook``. Only codes that were selected get a gradient. Under
    ``DistributedDataParallel`` and FSDP2 the gradients are averaged as those of any parameter, and a k-means start and the codes in the
    place of dead ones reach the shards.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3.
    """

    trained_by_gradient = True

    def __init__(self, size: int, dim: int, **stored):
        super().__init__(size, dim, **stored)
        self.codes = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))

    def forward(self) -> Tensor:
        # A start or a replacement writes the parameter in place while a backward pass still needs the codes it used.
        written = self.threshold_ema_dead_code or self._awaits_start
        return self.codes.clone() if written and (self.training or torch.is_grad_enabled()) else self.codes

    def observe(self, latents: Tensor, indices: Tensor, weight: float | Tensor | None = None) -> None:
        if self.threshold_ema_dead_code:
            super().observe(latents, indices, weight)
