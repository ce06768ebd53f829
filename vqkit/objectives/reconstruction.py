"""Reconstruction losses: pixels, and structure where no perceptual weights are at hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.objectives.structure import similarity_map

_PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
_WINDOW = 7


def structural_loss(reconstruction: Tensor, images: Tensor, scales: int = 3) -> Tensor:
    """One minus structural similarity, averaged over an average-pool pyramid.

        loss = mean over s < scales of (1 - mean SSIM(pool^s(reconstruction), pool^s(images)))

    The window is uniform, 7x7 (smaller where the map is), and pool is the 2x2 average. It is our stand-in for LPIPS
    when no VGG weights are given: it sees edges and texture, needs no network, and is never reported as LPIPS.

    Args:
        reconstruction, images: (B, C, H, W) floating, in [-1, 1]; computed in float32 or better.
        scales: levels of the pyramid; it ends early where a side would fall below 2 pixels.

    Returns a scalar in [0, 2]; gradients reach both arguments.
    Raises ValueError where the shapes differ or scales < 1.
    Source: SSIM, Wang et al. 2004; the pyramid after Wang et al., Multiscale Structural Similarity, 2003, with the
    scales averaged, not multiplied.
    """
    _check_pair(reconstruction, images)
    if scales < 1:
        raise ValueError(f"scales: got {scales}, expected at least 1")
    # SSIM wants black at 0
    x, y = _full_precision(reconstruction) + 1, _full_precision(images) + 1
    terms = []
    for _ in range(scales):
        window = min(_WINDOW, x.shape[-2], x.shape[-1])
        terms.append(1 - similarity_map(x, y, lambda t, w=window: F.avg_pool2d(t, w, stride=1), 2.0).mean())
        if min(x.shape[-2:]) < 4:
            break
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return torch.stack(terms).mean()


class ReconstructionLoss(nn.Module):
    """Pixel loss plus an optional structural term.

        loss = mean |x^ - x|  (or mean (x^ - x)^2)  +  structural_weight * structural_loss(x^, x)

    Args:
        pixel: "l1" (VQ-GAN) or "l2" (VQ-VAE).
        structural_weight: 0 with perceptual weights at hand; above 0 without them.

    Call: reconstruction (B, C, H, W), images of the same shape -> (loss, terms), where terms maps "l1" or "l2", and
    "structural" when weighted, to unweighted scalars with their gradients.
    Raises ValueError for another pixel loss, a negative weight, or shapes that differ.
    """

    def __init__(self, pixel: str = "l1", structural_weight: float = 0.0, scales: int = 3):
        super().__init__()
        if pixel not in _PIXEL_LOSSES:
            raise ValueError(f"pixel: got {pixel!r}, expected one of {sorted(_PIXEL_LOSSES)}")
        if structural_weight < 0:
            raise ValueError(f"structural_weight: got {structural_weight}, expected 0 or more")
        self.pixel = pixel
        self.structural_weight = structural_weight
        self.scales = scales

    def forward(self, reconstruction: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _check_pair(reconstruction, images)
        loss = _PIXEL_LOSSES[self.pixel](_full_precision(reconstruction), _full_precision(images))
        terms = {self.pixel: loss}
        if self.structural_weight > 0:
            terms["structural"] = structural_loss(reconstruction, images, self.scales)
            loss = loss + self.structural_weight * terms["structural"]
        return loss, terms

    def extra_repr(self) -> str:
        return f"pixel={self.pixel!r}, structural_weight={self.structural_weight}"


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_pair(reconstruction: Tensor, images: Tensor) -> None:
    if reconstruction.shape != images.shape or reconstruction.dim() != 4:
        raise ValueError(
            f"reconstruction, images: got {tuple(reconstruction.shape)} and {tuple(images.shape)}, "
            "expected one shape (B, C, H, W)"
        )
