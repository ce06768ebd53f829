"""K-means over a batch, in O(N + K) memory and the same on every rank."""

import torch
from torch import Tensor

from vqkit.codebooks.ranks import draw_distinct, sum_over_ranks
from vqkit.ops import code_statistics, nearest_code


def kmeans(latents: Tensor, valid: Tensor, centres: Tensor, iterations: int, cosine: bool) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from these centres.

    latents: (N, D) float32 or float64.  valid: (N,) bool, the rows that count.  centres: (K, D), dtype of latents, the same on
    all ranks.  cosine: spherical k-means.
    Returns centres (K, D) and counts (K,) in the dtype of latents. A centre that loses all its latents stays.

    Source: Lloyd 1982, IEEE Transactions on Information Theory 28(2); sums and counts are those of all ranks.
    """
    counts = latents.new_zeros(len(centres))
    for _ in range(iterations):
        indices = nearest_code(latents, centres, metric="cosine" if cosine else "l2")
        sums, counts = code_statistics(latents, indices.where(valid, -1), len(centres))
        sums, counts = sum_over_ranks(sums, counts.to(sums.dtype))
        means = torch.nn.functional.normalize(sums, dim=-1) if cosine else sums / counts.clamp(min=1)[:, None]
        centres = means.where(counts[:, None] > 0, centres)
    return centres, counts


# It waits for the device, which no CUDA graph can; inductor is told so since torch 2.8.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


# An operator, since whether there is anything to do is known on the device only, and a compiled graph has no branches.
@torch.library.custom_op("vqkit::kmeans_start", mutates_args=(), tags=_TAGS)
def kmeans_start(
    latents: Tensor, valid: Tensor, initialised: Tensor, size: int, iterations: int, cosine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """K-means from ``size`` latents of all ranks, unless ``initialised``, () bool, or no rank has a valid latent.

    Returns centres, counts as ``kmeans`` and found, () bool; without a start found is False and the others are zeros.
    """
    drawn = None if bool(initialised) else draw_distinct(latents, valid, size)
    if drawn is None:
        return latents.new_zeros(size, latents.shape[1]), latents.new_zeros(size), torch.zeros_like(initialised)
    return *kmeans(latents, valid, drawn, iterations, cosine), torch.ones_like(initialised)


@kmeans_start.register_fake
def _(latents, valid, initialised, size, iterations, cosine):
    return latents.new_empty(size, latents.shape[1]), latents.new_empty(size), torch.empty_like(initialised)
