"""How sure a classifier is of each picture, and how many classes the pictures have between them."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(logits: Tensor, *, splits: int = 10, generator: torch.Generator | None = None) -> tuple[float, float]:
    """The exponential of the mean divergence of a picture's classes from those of all pictures.

        score = exp(1/N sum_n KL(p(c | x_n) || p(c))),   p(c) = 1/N sum_n p(c | x_n),   p(c | x_n) = softmax(logits_n)

    It is IS over Inception's logits only; over any other classifier's it is reported as "class score", see `PictureFeatures.key`.
    From 1, where all pictures look alike to the classifier or it is sure of none, to the number of classes.

    Args:
        logits: (N, C), unnormalised; computed in float64.
        splits: the mean over so many parts of the pictures, as published, after they are shuffled.
        generator: of the shuffling, a CPU one; None is one seeded with 0.

    Returns the mean over the parts and its standard deviation, 0 for one part.
    Raises ValueError for another shape, values that are not finite, or more parts than pictures.
    Source: Salimans et al., Improved Techniques for Training GANs, arXiv 1606.03498, section 4; shuffling is that of torch-fidelity.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: expected (N, C), got {tuple(logits.shape)}")
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits: expected 1 .. {len(logits)}, the number of pictures, got {splits}")
    if not logits.isfinite().all():
        raise ValueError("logits: expected finite values")
    order = torch.randperm(len(logits), generator=generator or torch.Generator().manual_seed(0)).to(logits.device)
    scores = []
    for part in logits.detach().double()[order].log_softmax(1).chunk(splits):
        marginal = part.exp().mean(0)
        # A class that has no probability at all adds nothing.
        divergences = (part.exp() * (part - marginal.log())).where(marginal > 0, 0.0).sum(1)
        scores.append(divergences.mean().exp())
    values = torch.stack(scores)
    return values.mean().item(), values.std(correction=0).item()
