"""Codebooks: what yields K code vectors and may learn from what was selected. A new kind is one new file."""

from vqkit.codebooks.affine import AffineCodebook
from vqkit.codebooks.anchored import AnchoredCodebook
from vqkit.codebooks.codebook import Codebook
from vqkit.codebooks.ema import EMACodebook
from vqkit.codebooks.learned import LearnedCodebook
from vqkit.codebooks.linear import LinearCodebook
from vqkit.codebooks.rate_adaptive import RateAdaptiveCodebook
from vqkit.codebooks.semantic import SemanticCodebook
from vqkit.codebooks.stored import accumulate
from vqkit.codebooks.supplied import SuppliedCodebook
from vqkit.codebooks.transferred import TransferredCodebook

# What ``Quantizer(codebook="...")`` may name.
CODEBOOKS: dict[str, type[Codebook]] = {
    "ema": EMACodebook,
    "learned": LearnedCodebook,
    "anchored": AnchoredCodebook,
    "linear": LinearCodebook,
}

__all__ = [
    "CODEBOOKS",
    "AffineCodebook",
    "AnchoredCodebook",
    "Codebook",
    "EMACodebook",
    "LearnedCodebook",
    "LinearCodebook",
    "RateAdaptiveCodebook",
    "SemanticCodebook",
    "SuppliedCodebook",
    "TransferredCodebook",
    "accumulate",
]
