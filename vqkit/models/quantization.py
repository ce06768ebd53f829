"""How a tokenizer's configuration names its quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vqkit.codebooks import CODEBOOKS, Codebook
from vqkit.quantizers import ProductQuantizer, Quantizer


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions:
    """The quantizer's part of a configuration; what the fields mean is in `vqkit.Quantizer`.

    codebook: "learned" is trained by its loss and starts from U(-1/K, 1/K); "ema" follows the latents' running mean; "anchored"
        moves unused codes to latents (CVQ); "linear" is frozen vectors under one learned map (SimVQ).
    decay: of a codebook with running means or running use; others have none.
    commitment_weight, codebook_weight: of the two terms of the loss. Published: 0.25 and 1. VQCT's published code, like
        early VQ-GAN code, has them swapped: 1 and 0.25.
    """

    codebook: str = "learned"
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    decay: float = 0.99
    gradient: str = "straight_through"
    metric: str = "l2"
    kmeans_init: bool = False
    threshold_ema_dead_code: float = 0.0

    @property
    def loss_weights(self) -> dict[str, float]:
        """By the names of the quantizer's losses."""
        return {"commitment": self.commitment_weight, "codebook": self.codebook_weight}

    def build(
        self, code_dim: int, codebook_sizes: Sequence[int], selections: Sequence[int]
    ) -> Quantizer | ProductQuantizer:
        """A quantizer over (B, code_dim * parts, h, w): one `Quantizer` for one part, else their product."""
        single = len(selections) == 1
        # Another value was asked for: then the quantizer says that its codebook has no such option.
        known = self.codebook not in CODEBOOKS or "decay" in CODEBOOKS[self.codebook].options()
        decay = self.decay if known or self.decay != QuantizerOptions.decay else None
        parts = [
            Quantizer(
                code_dim,
                size,
                top_k=selection,
                metric=self.metric,
                codebook=self.codebook,
                decay=decay,
                commitment_weight=self.commitment_weight,
                gradient=self.gradient,
                kmeans_init=self.kmeans_init,
                threshold_ema_dead_code=self.threshold_ema_dead_code,
                channel_first=single,
            )
            for size, selection in zip(codebook_sizes, selections, strict=True)
        ]
        return parts[0] if single else ProductQuantizer(parts, channel_first=True)

    def build_codebook(self, code_dim: int, codebook_size: int) -> Codebook:
        """The codebook of one part alone."""
        return self.build(code_dim, (codebook_size,), (1,)).codebook


def resolve_sizes(codebook_size: int | Sequence[int], selections: Sequence[int]) -> tuple[int, ...]:
    """K of each part, from one number for all or one a part. Raises ValueError where they do not fit."""
    if not selections or min(selections) < 1:
        raise ValueError(f"selections: got {tuple(selections)}, expected one number of at least 1 a part")
    sizes = (codebook_size,) * len(selections) if isinstance(codebook_size, int) else tuple(codebook_size)
    if len(sizes) != len(selections):
        raise ValueError(f"codebook_size: got {sizes}, expected one number, or one for each of {len(selections)} parts")
    for size, selection in zip(sizes, selections, strict=True):
        if size < selection:
            raise ValueError(f"codebook_size: got {size}, expected at least the {selection} codes that a part selects")
    return sizes
