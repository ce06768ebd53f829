"""How often, and how far down, a picture finds the texts that belong to it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Pictures compared with all texts at once.
_CHUNK = 1024


def retrieval_ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """The rank of the best right text of each picture, from 1: one more than the wrong texts that are at least as similar.

    Args:
        similarity: (N, M), higher is nearer; compared in float64.
        right: bool (N, M), which texts belong to a picture; at least one of each. Transposed, both serve text-to-picture retrieval.

    Right texts do not count against one another. A tie with a wrong text counts against the picture (the pessimistic rank), so a model
    that says the same of everything finds nothing. Returns int64 (N,). No gradient.
    Raises ValueError where the shapes differ, `right` is not bool, a picture has no right text, or a similarity is NaN.
    """
    if similarity.dim() != 2 or right.shape != similarity.shape or right.dtype != torch.bool:
        raise ValueError(f"similarity, right: expected (N, M) and bool (N, M), got {tuple(similarity.shape)} and {right.dtype} {tuple(right.shape)}")
    if len(right) and not right.any(1).all():
        raise ValueError(f"right: expected at least one right text a picture, got none for picture {int((~right.any(1)).nonzero()[0])}")
    if similarity.isnan().any():
        raise ValueError("similarity: expected numbers, got NaN")
    if not len(similarity):
        return torch.zeros(0, dtype=torch.int64, device=similarity.device)
    similarity = similarity.detach().double()
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~right).sum(1)


def recall_at(ranks: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """k -> the fraction of ranks of at most k, 0 .. 1; 0 for no ranks. ranks: int64 (N,), from 1. Raises ValueError for a k below 1."""
    if min(ks) < 1:
        raise ValueError(f"ks: expected at least 1, got {tuple(ks)}")
    return {k: (ranks <= k).double().mean().item() if len(ranks) else 0.0 for k in ks}


def median_rank(ranks: Tensor) -> float:
    """The median of the ranks, of an even number the mean of the middle two. ranks: int64 (N,). Raises ValueError for no ranks."""
    if not len(ranks):
        raise ValueError("ranks: expected at least one, got none")
    return ranks.double().quantile(0.5).item()


def retrieval_recall(pictures: Tensor, texts: Tensor, same: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """How often the own text of a picture is among the k nearest by cosine.

        recall@k = |{i : fewer than k other texts j with s(p_i, t_j) >= s(p_i, t_i)}| / N

    Args:
        pictures, texts: (N, W); text i belongs to picture i. Compared in float64.
        same: int64 (N,), equal for texts that say the same: each of them is right, and none counts against another.
        ks: each at least 1.

    Ties as in `retrieval_ranks`. Returns k -> recall in 0 .. 1, 0 for no pictures. Memory is O(N). Raises ValueError where the shapes
    differ or a k is below 1.
    Source: picture-to-text retrieval by e_CLS against e_EOT as in LG-VQ, arXiv 2405.14206; the ties are ours.
    """
    if pictures.shape != texts.shape or pictures.dim() != 2 or same.shape != pictures.shape[:1]:
        raise ValueError(f"pictures, texts, same: expected (N, W), (N, W) and (N,), got {tuple(pictures.shape)}, {tuple(texts.shape)} "
                         f"and {tuple(same.shape)}")
    texts = F.normalize(texts.double(), dim=1)
    ranks = [torch.zeros(0, dtype=torch.int64, device=pictures.device)]
    for start in range(0, len(pictures), _CHUNK):
        some = slice(start, start + _CHUNK)
        similarity = F.normalize(pictures[some].double(), dim=1) @ texts.T
        ranks.append(retrieval_ranks(similarity, same[some].unsqueeze(1) == same))
    return recall_at(torch.cat(ranks), ks)
