"""What adapters share whose codes are an ``nn.Embedding`` that the gradient trains."""

import torch
from torch import Tensor, nn

from vqkit.codebooks import SuppliedCodebook
from vqkit.ops.nearest import Metric
from vqkit.quantizers import Quantized, Quantizer


def supplied_quantizer(size: int, dim: int, metric: Metric = "l2", channel_first: bool = True) -> Quantizer:
    """A ``Quantizer`` without state or codes of its own: they come with each call."""
    return Quantizer(dim, size, metric=metric, codebook=SuppliedCodebook(size, dim), channel_first=channel_first)


class EmbeddingQuantizer(nn.Module):
    """A ``Quantizer`` over the weight of ``embedding``: parameters and state keys are those of the library that is stood in for.

    A row that holds NaN or infinity has output 0 and index -1, and teaches nothing.
    """

    def __init__(self, size: int, dim: int, *, metric: Metric = "l2", channel_first: bool = True):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.quantizer = supplied_quantizer(size, dim, metric, channel_first)

    def quantize_features(self, x: Tensor) -> Quantized:
        return self.quantizer(x, codes=self.embedding.weight)

    def encode(self, x: Tensor) -> Tensor:
        """The indices that ``forward`` chooses, in the layout of ``x`` without its features."""
        return self.quantizer.encode(x, codes=self.embedding.weight)


def code_vectors(weight: Tensor, indices: Tensor) -> Tensor:
    """weight[indices], with its gradient; zero for -1. weight: (K, D).  indices: (...) -> (..., D)."""
    return weight[indices.clamp(min=0)].where(indices[..., None] >= 0, 0.0)


def one_hot(indices: Tensor, size: int) -> Tensor | None:
    """Sparse (N, K) float32 with a 1 at each index (N,), none for -1: O(N) memory. None in a compiled graph, which has no sparse tensors."""
    if torch.compiler.is_compiling():
        return None
    rows = torch.arange(len(indices), device=indices.device)
    place = torch.stack([rows, indices.clamp(min=0)])
    return torch.sparse_coo_tensor(place, (indices >= 0).float(), (len(indices), size), check_invariants=False)


def as_feature_map(vectors: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Vectors (N, C) as (B, C, H, W) for shape (B, H, W, C); as they are for None."""
    return vectors if shape is None else vectors.view(shape).permute(0, 3, 1, 2).contiguous()
