"""SGC-VQGAN: a VQ-GAN whose codes gather latents of one class, told by a mask in training.

Source: Semantic Guided Clustering of SGC-VQGAN, arXiv 2409.06105; `vqkit.codebooks.SemanticCodebook` has the method and our readings.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.codebooks import SemanticCodebook
from vqkit.models.tokenizer import Tokenizer, TokenizerOutput
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.quantizers import SemanticQuantizer


@dataclass(frozen=True, kw_only=True)
class SGCVQGANConfig(TrunkConfig):
    """The fields of `TrunkConfig` come with these.

    codebook_size: K.  classes: C, of the masks; CamVid has 32.
    semantic_weight: of 1 - P(class | code) beside a squared distance, when a labelled latent is assigned.
    decay, kmeans_init, threshold_ema_dead_code, commitment_weight, gradient: as in `vqkit.Quantizer`.
    """

    codebook_size: int = 1024
    classes: int = 32
    semantic_weight: float = 1.0
    decay: float = 0.99
    kmeans_init: bool = False
    threshold_ema_dead_code: float = 0.0
    commitment_weight: float = 0.25
    gradient: str = "straight_through"


class SGCVQGAN(Tokenizer):
    """VQ-GAN with codes by moving average. In training, pictures with a mask are assigned to codes by feature and class.

    loss = commitment_weight * mean (z - sg e)^2

    Encoding needs no mask: in eval mode, and for pictures without one, the nearest code is taken.
    """

    name = "sgc-vqgan"
    Config = SGCVQGANConfig

    def __init__(self, config: SGCVQGANConfig):
        fields = ("decay", "kmeans_init", "threshold_ema_dead_code")
        options = {field: getattr(config, field) for field in fields}
        weight, size = config.semantic_weight, config.codebook_size
        codebook = SemanticCodebook(size, config.resolved_code_dim, config.classes, weight=weight, **options)
        quantizer = SemanticQuantizer(
            codebook, commitment_weight=config.commitment_weight, gradient=config.gradient, channel_first=True
        )
        weights = {"commitment": config.commitment_weight}
        super().__init__(dataclasses.asdict(config), config.downsampling, build_trunk(config, 1), quantizer, weights)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """As `Tokenizer.forward`.

        mask: the class of every pixel, any integers, (B, H, W), -1 where it is not known. A position has the class of most of its known
        pixels, the lowest of several. Raises ValueError for one that does not fit, IndexError for a class out of range (on the CPU).
        """
        latents = self._latents(images)
        if mask is None:
            return self._output(self.quantizer(latents))
        if mask.is_floating_point() or mask.is_complex() or mask.shape != (len(images), *images.shape[2:]):
            shape = (len(images), *images.shape[2:])
            raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, expected integers of shape {shape}")
        return self._output(self.quantizer(latents, classes=majority(mask, self.downsampling, self.quantizer.codebook.classes)))


def majority(mask: Tensor, cell: int, classes: int) -> Tensor:
    """The class of most pixels in each cell of `cell` x `cell`: (B, H, W) integers -> (B, H / cell, W / cell) int64.

    The lowest of several; -1 where all pixels are -1. Raises IndexError for a class outside -1..classes-1 (on the CPU).
    """
    batch, height, width = mask.shape
    cells = mask.long().view(batch, height // cell, cell, width // cell, cell).transpose(2, 3).reshape(-1, cell * cell)
    if mask.device.type == "cpu" and mask.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in cells.aminmax())
        if not -1 <= low <= high < classes:
            raise IndexError(f"mask: got classes {low}..{high}, expected -1..{classes - 1}")
    counts = torch.zeros(len(cells), classes + 1, dtype=torch.int64, device=mask.device)
    counts = counts.scatter_add(1, cells + 1, torch.ones_like(cells))[:, 1:]
    # No two are equal, so that the largest is the lowest class of the most frequent ones.
    ranked = counts * classes - torch.arange(classes, device=mask.device)
    found = ranked.argmax(1).where(counts.sum(1) > 0, -1)
    return found.view(batch, height // cell, width // cell)
