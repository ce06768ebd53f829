"""Codebooks: what yields K code vectors and may learn from what was selected. A new kind is one new file."""

from vqkit.codebooks.codebook import Codebook
from vqkit.codebooks.ema import EMACodebook
from vqkit.codebooks.learned import LearnedCodebook
from vqkit.codebooks.supplied import SuppliedCodebook
from vqkit.codebooks.transferred import TransferredCodebook

__all__ = ["Codebook", "EMACodebook", "LearnedCodebook", "SuppliedCodebook", "TransferredCodebook"]
