"""How well pictures and captions found each other: retrieval, and words that were hidden."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Pictures compared with all texts at once.
_CHUNK = 1024


def retrieval_recall(pictures: Tensor, texts: Tensor, same: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """How often the own text of a picture is among the k nearest by cosine.

        recall@k = |{i : fewer than k other texts j with s(p_i, t_j) >= s(p_i, t_i)}| / N

    Args:
        pictures, texts: (N, W); text i belongs to picture i. Compared in float64.
        same: int64 (N,), equal for texts that say the same: none of them counts against another.
        ks: each at least 1.

    A tie counts against the picture, so a model that says the same of every picture finds nothing. Returns k -> recall in 0 .. 1, 0 for
    no pictures. Memory is O(N). Raises ValueError where the shapes differ or a k is below 1.
    Source: picture-to-text retrieval by e_CLS against e_EOT as in LG-VQ, arXiv 2405.14206; the ties are ours.
    """
    if pictures.shape != texts.shape or pictures.dim() != 2 or same.shape != pictures.shape[:1]:
        raise ValueError(f"pictures, texts, same: expected (N, W), (N, W) and (N,), got {tuple(pictures.shape)}, {tuple(texts.shape)} "
                         f"and {tuple(same.shape)}")
    if min(ks) < 1:
        raise ValueError(f"ks: expected at least 1, got {tuple(ks)}")
    if not len(pictures):
        return dict.fromkeys(ks, 0.0)
    texts = F.normalize(texts.double(), dim=1)
    before = []
    for start in range(0, len(pictures), _CHUNK):
        some = slice(start, start + _CHUNK)
        scores = F.normalize(pictures[some].double(), dim=1) @ texts.T
        own = scores.diagonal(start).unsqueeze(1)
        before.append(((scores >= own) & (same[some].unsqueeze(1) != same)).sum(1))
    ranks = torch.cat(before)
    return {k: (ranks < k).double().mean().item() for k in ks}


def choose_words(words: Tensor, draws: Tensor, count: int) -> Tensor:
    """The tokens of `count` words of each text, those of the lowest draws; none of a text with fewer words.

    words: int64 (B, T), the number of a token's word, below T; -1 for none.  draws: (B, T), word n's in column n.
    Returns bool (B, T). Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    length = words.shape[1]
    exist = (words.unsqueeze(1) == torch.arange(length, device=words.device).view(1, length, 1)).any(2)
    order = draws.double().masked_fill(~exist, torch.inf).argsort(dim=1, stable=True)[:, :count]
    chosen = torch.zeros_like(exist).scatter_(1, order, True) & (exist.sum(1, keepdim=True) >= count)
    return chosen.gather(1, words.clamp_min(0)) & (words >= 0)


def words_right(logits: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
    """Whether each masked word was named: all of its tokens have the largest logit.

    logits: (M, V) of the masked tokens.  ids: int64 (M,), the true tokens.  owners: int64 (M,), equal for the tokens of one word.
    Returns bool, one a word, in the order of the owners' numbers.
    Source: LG-VQ's masked word prediction, recall@1; that every piece of a word has to be right is ours.
    """
    right = logits.argmax(1) == ids
    found, place = owners.unique(return_inverse=True)
    wrong = torch.zeros(len(found), dtype=torch.int64, device=ids.device).scatter_add_(0, place, (~right).long())
    return wrong == 0
