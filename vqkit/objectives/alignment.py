"""How well pictures, words and their relations agree: LG-VQ's three formulas, on plain tensors.

Source: Liang et al., LG-VQ: Language-Guided Codebook Learning, arXiv 2405.14206 (NeurIPS 2024).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def global_alignment(pictures: Tensor, texts: Tensor, own: Tensor, present: Tensor) -> Tensor:
    """How surprising each picture's own text is among all texts.

        loss_i = -log( exp s(p_i, t_own(i)) / sum_j exp s(p_i, t_j) ),  s the cosine, without a temperature

    Args:
        pictures: (B, W), with a gradient.
        texts: (N, W), detached here.
        own: int64 (B,), the text of each picture.
        present: bool (N,); a text that is not there is nobody's alternative, and its picture's loss is zero.

    Returns (B,) in float32 or better.
    Source: the paper's L_gsa of its Semantic Alignment Module, picture to text.
    """
    similarities = _unit(pictures) @ _unit(texts.detach()).T
    similarities = similarities.masked_fill(~present, -torch.inf)
    # a row without its own text must not make NaN of a gradient
    mine = present[own]
    similarities = torch.where(mine.unsqueeze(1), similarities, 0.0)
    return torch.where(mine, F.cross_entropy(similarities, own, reduction="none"), 0.0)


def word_states(states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The mean state of each word's tokens.

    Args:
        states: (B, T, W) of tokens.
        words: int64 (B, T), the number of the word that a token is part of, below T; -1 belongs to none.

    Returns (B, T, W), word n in row n, and bool (B, T), which of them exist. The mean over the pieces of a word is ours.
    """
    length = words.shape[1]
    # (B, words, tokens)
    parts = words.unsqueeze(1) == torch.arange(length, device=words.device).view(1, length, 1)
    counts = parts.sum(2, keepdim=True)
    return parts.to(states.dtype) @ states / counts.clamp_min(1), counts.squeeze(2) > 0


def nearest_positions(words: Tensor, positions: Tensor) -> Tensor:
    """argmax_k s(e_w, z_k): int64 (B, T), for each word (B, T, W) the position (B, S, W) of the largest cosine. No gradient."""
    with torch.no_grad():
        return (_unit(words) @ _unit(positions).transpose(1, 2)).argmax(2)


def relation_errors(words: Tensor, codes: Tensor, exist: Tensor) -> tuple[Tensor, Tensor]:
    """Whether codes are related as their words are.

        error = sum over pairs i < j of (s(e_i, e_j) - s(z_i, z_j))^2,  s the cosine

    Args:
        words: e, (B, T, W), detached here.
        codes: z, (B, T, V), of each word's position, with a gradient.
        exist: bool (B, T), which of the words there are.

    Returns the sum of each picture (B,) in float32 or better and the number of its pairs, int64 (B,).
    Source: the paper's L_ras of its Relationship Alignment Module; a pair counts once, a word is no pair with itself (ours).
    """
    words, codes = _unit(words.detach()), _unit(codes)
    difference = words @ words.transpose(1, 2) - codes @ codes.transpose(1, 2)
    pairs = (exist.unsqueeze(2) & exist.unsqueeze(1)).triu(1)
    return difference.square().masked_fill(~pairs, 0.0).sum((1, 2)), pairs.sum((1, 2))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
