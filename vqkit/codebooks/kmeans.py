"""K-means over a batch, in O(N + K) memory and the same on every rank."""

import torch
from torch import Tensor

from vqkit.codebooks.ranks import draw_latents, sum_over_ranks
from vqkit.ops import code_statistics, nearest_code


def kmeans(latents: Tensor, valid: Tensor, size: int, iterations: int, cosine: bool) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from ``size`` latents drawn at random.

    latents: (N, D) float32 or float64.  valid: (N,) bool, the rows that count.  cosine: spherical k-means.
    Returns centres (size, D) and counts (size,) in the dtype of latents. A centre that loses all its latents stays.

    Source: Lloyd 1982, IEEE Transactions on Information Theory 28(2); sums and counts are those of all ranks.
    """
    centres, _ = sum_over_ranks(*draw_latents(latents, valid, size))
    counts = latents.new_zeros(size)
    for _ in range(iterations):
        indices = nearest_code(latents, centres, metric="cosine" if cosine else "l2")
        sums, counts = code_statistics(latents, indices.where(valid, -1), size)
        sums, counts = sum_over_ranks(sums, counts.to(sums.dtype))
        means = torch.nn.functional.normalize(sums, dim=-1) if cosine else sums / counts.clamp(min=1)[:, None]
        centres = means.where(counts[:, None] > 0, centres)
    return centres, counts
