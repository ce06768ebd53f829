"""What is reported of a model: picture quality, codebook usage, and how pictures and captions agree."""

from vqkit.metrics.alignment import choose_words, retrieval_recall, words_right
from vqkit.metrics.image import psnr, ssim
from vqkit.metrics.usage import CodebookUsage, count_codes

__all__ = ["CodebookUsage", "choose_words", "count_codes", "psnr", "retrieval_recall", "ssim", "words_right"]
