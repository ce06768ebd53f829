"""What is reported of a model: picture quality and codebook usage."""

from vqkit.metrics.image import psnr, ssim
from vqkit.metrics.usage import CodebookUsage, count_codes

__all__ = ["CodebookUsage", "count_codes", "psnr", "ssim"]
