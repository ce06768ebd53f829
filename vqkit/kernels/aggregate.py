"""Graph aggregation y[i] = sum_e w_e x[neighbour_e] over a graph in compressed rows: lists of neighbours, summed in order."""

from torch import Tensor

from vqkit.kernels import probe
from vqkit.kernels.segments import segment_sums


def rejects(*tensors: Tensor) -> str | None:
    """Why these tensors cannot be computed on; None when they can."""
    return probe.unavailable(*tensors)


def aggregate(offsets: Tensor, neighbours: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    """offsets (V + 1,), neighbours (E,) int64, weights (E,), features (V, F) -> (V, F) in the dtype of features."""
    # Nobody has looked at a graph that was made on a GPU: whatever it holds, nothing outside the arrays is read.
    offsets = offsets.clamp(0, neighbours.shape[0]).cummax(0).values
    return segment_sums(features, offsets, neighbours.clamp(0, features.shape[0] - 1), weights, features.dtype)
