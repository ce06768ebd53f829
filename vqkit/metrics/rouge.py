"""ROUGE-L: the longest words in common, in order."""

from __future__ import annotations

from collections.abc import Sequence

from vqkit.metrics.caption_tokens import Scores, Tokenize, caption_tokens, tokenized

_BETA = 1.2


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_tokens) -> Scores:
    """ROUGE-L of one caption a picture against the picture's references, 0 .. 1; that of the corpus is the mean.

        F = (1 + b^2) P R / (R + b^2 P), b = 1.2
        P = max over references of LCS / length of the caption, R = max over references of LCS / length of the reference

    where LCS is the length of the longest common subsequence; the two maxima may be of different references. 0 for an empty caption.
    `tokenize`: text to tokens; `str.split` for text that is tokenised already.

    Raises ValueError for lengths that differ, no picture, or a picture without reference.
    Source: Lin, ROUGE, 2004; equal to pycocoevalcap's, which counts an empty text as one empty word, so that it gives an empty caption 1
    where a reference is empty too.
    """
    captions, truths = tokenized(hypotheses, references, tokenize)
    scores = tuple(_score(caption, own) for caption, own in zip(captions, truths, strict=True))
    return Scores(sum(scores) / len(scores), scores)


def _score(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = [(_common_length(caption, reference), len(reference)) for reference in references]
    precision = max(shared for shared, _ in common) / max(len(caption), 1)
    recall = max(shared / max(length, 1) for shared, length in common)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if precision else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, 1):
            before, lengths[place] = lengths[place], before + 1 if word == other else max(lengths[place], lengths[place - 1])
    return lengths[-1]
