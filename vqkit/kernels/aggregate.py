"""Graph aggregation y[i] = sum_e w_e x[neighbour_e] over a graph in compressed rows: lists of neighbours, summed in order."""

from torch import Tensor

from vqkit.kernels import probe
from vqkit.kernels.segments import segment_sums


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors cannot be computed on; None when they can."""
    return probe.unavailable(*tensors)


def aggregate(offsets: Tensor, neighbours: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    """offsets (V + 1,), neighbours (E,) int64, weights (E,), features (V, F) -> (V, F) in the dtype of features."""
    return segment_sums(features, offsets, neighbours, weights, features.dtype)
