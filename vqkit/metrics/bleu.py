"""BLEU: how many n-grams of a caption its references have too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vqkit.metrics.caption_tokens import Tokenize, caption_tokens, tokenized

# As in pycocoevalcap: no match at all gives almost 0, an empty caption 0, and nothing divides by 0.
_TINY, _SMALL = 1e-15, 1e-9


class Bleu(NamedTuple):
    """BLEU-1, BLEU-2, ... in 0 .. 1: of the corpus, and of each n one a picture."""

    corpus: tuple[float, ...]
    each: tuple[tuple[float, ...], ...]


def ngram_counts(tokens: Sequence[str], longest: int) -> Counter:
    """How often each n-gram of 1 .. `longest` tokens occurs, by the tuple of its tokens."""
    return Counter(tuple(tokens[start : start + n]) for n in range(1, longest + 1) for start in range(len(tokens) - n + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, longest: int = 4, tokenize: Tokenize = caption_tokens) -> Bleu:
    """BLEU-1 .. BLEU-`longest` of one caption a picture against the picture's references.

        BLEU-n = min(1, exp(1 - r / c)) (p_1 ... p_n)^(1/n)
        p_k = sum over captions of n-grams that a reference has, each at most as often as in the reference that has it most, / all n-grams

    where c counts the tokens of the captions and r those of the closest references (of two equally close ones the shorter). The corpus
    score sums numerators, denominators and lengths over all pictures; that of a picture has its own.

    Args:
        hypotheses: a caption for each picture; references: one or more captions for each.
        longest: n of the longest n-grams, at least 1.
        tokenize: text to tokens; `str.split` for text that is tokenised already.

    Raises ValueError for lengths that differ, no picture, a picture without reference, or longest < 1.
    Source: Papineni et al., BLEU, ACL 2002; equal to pycocoevalcap's, smoothing included.
    """
    if longest < 1:
        raise ValueError(f"longest: expected at least 1, got {longest}")
    captions, truths = tokenized(hypotheses, references, tokenize)
    rows = [_statistics(caption, own, longest) for caption, own in zip(captions, truths, strict=True)]
    total = [sum(column) for column in zip(*rows, strict=True)]
    return Bleu(_scores(total, longest), tuple(zip(*(_scores(row, longest) for row in rows), strict=True)))


def _statistics(caption: Sequence[str], references: Sequence[Sequence[str]], longest: int) -> list[int]:
    """Length, closest reference length, then for each n the n-grams found and the n-grams there are."""
    most: Counter = Counter()
    for reference in references:
        most |= ngram_counts(reference, longest)
    found = [0] * longest
    for ngram, count in ngram_counts(caption, longest).items():
        found[len(ngram) - 1] += min(count, most[ngram])
    length = len(caption)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [length, closest, *found, *(max(0, length - n) for n in range(longest))]


def _scores(row: Sequence[int], longest: int) -> tuple[float, ...]:
    length, closest, counts = row[0], row[1], row[2:]
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(longest):
        product *= (counts[n] + _TINY) / (counts[longest + n] + _SMALL)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return tuple(scores)
