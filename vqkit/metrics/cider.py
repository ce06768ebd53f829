"""CIDEr-D: the n-grams that tell a picture's captions from those of the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vqkit.metrics.bleu import ngram_counts
from vqkit.metrics.caption_tokens import Scores, Tokenize, caption_tokens, tokenized

_LONGEST, _SIGMA, _SCALE = 4, 6.0, 10.0


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_tokens) -> Scores:
    """CIDEr-D of one caption a picture against the picture's references, 0 .. 10; that of the corpus is the mean.

        CIDEr-D = 10 mean over n = 1 .. 4 and references r of  exp(-d^2 / (2 sigma^2)) sum_w min(g_w, r_w) r_w / (|g| |r|),  sigma = 6
        g_w = count of w in the caption * (log N - log max(1, pictures with w in a reference)),  N pictures

    over the n-grams w, r_w the same of the reference, d the difference of their lengths. Papers print it times 100: 0.936 as 93.6.
    How rare an n-gram is comes from these references, so the score depends on the whole set: with a single picture it is 0, and the
    numbers of a subset are not comparable with those of the set.
    `tokenize`: text to tokens; `str.split` for text that is tokenised already.

    Raises ValueError for lengths that differ, no picture, or a picture without reference.
    Source: Vedantam, Zitnick, Parikh, CIDEr, CVPR 2015, section 6; equal to pycocoevalcap's "CIDEr", which takes for a length the number
    of two-word n-grams.
    """
    captions, truths = tokenized(hypotheses, references, tokenize)
    counted = [[ngram_counts(tokens, _LONGEST) for tokens in own] for own in truths]
    pictures: Counter = Counter()
    for own in counted:
        pictures.update(set().union(*own))
    top = math.log(len(captions))
    rarity = {ngram: top - math.log(count) for ngram, count in pictures.items()}
    scores = []
    for caption, own in zip(captions, counted, strict=True):
        weighted = _weighted(ngram_counts(caption, _LONGEST), rarity, top)
        total = sum(_similarity(weighted, _weighted(counts, rarity, top)) for counts in own)
        scores.append(_SCALE * total / (_LONGEST * len(own)))
    return Scores(sum(scores) / len(scores), tuple(scores))


_Weighted = tuple[dict[tuple[str, ...], float], list[float], int]


def _weighted(counts: Counter, rarity: dict[tuple[str, ...], float], top: float) -> _Weighted:
    """Weights by n-gram, their norm for each n, and the length; an n-gram of no reference is as rare as can be."""
    weights = {ngram: count * rarity.get(ngram, top) for ngram, count in counts.items()}
    squares = [0.0] * _LONGEST
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    return weights, [math.sqrt(square) for square in squares], sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(caption: _Weighted, reference: _Weighted) -> float:
    """Sum over n of the clipped cosine, times the penalty of the length."""
    (weights, norms, length), (others, other_norms, other_length) = caption, reference
    products = [0.0] * _LONGEST
    for ngram, weight in weights.items():
        other = others.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, other) * other
    cosines = [product / (norm * other) for product, norm, other in zip(products, norms, other_norms, strict=True) if norm and other]
    return sum(cosines) * math.exp(-((length - other_length) ** 2) / (2 * _SIGMA**2))
