"""How well a picture's features tell which words of its caption were hidden."""

import torch
from torch import Tensor


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
