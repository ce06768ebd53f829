"""WUPS: answers that are nearly right by WordNet's tree of things."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from vqkit.metrics.caption_tokens import Scores
from vqkit.metrics.synsets import open_wordnet
from vqkit.metrics.vqa import check_answers

_DISCOUNT = 0.1


def wups(predictions: Sequence[str], answers: Sequence[str], threshold: float = 0.9, *, wordnet=None) -> Scores:
    """Wu-Palmer similarity of answers as sets of things, 0 .. 1; that of the corpus is the mean.

        WUPS(A, T) = min( prod over a in A of max over t in T of m(a, t),  prod over t in T of max over a in A of m(a, t) )
        m(a, t) = 1 where a = t, else the greatest Wu-Palmer similarity of their noun synsets, times 0.1 where it is below the threshold
        Wu-Palmer = 2 depth(least common subsumer) / (depth(a) + depth(t)) along the paths through it, a root having depth 1

    Args:
        predictions, answers: one string a question; the things of a list are separated by commas: "chair, night stand". Compared in lower
            case; a thing of several words is looked up as one entry of WordNet (night_stand), and without one is like nothing but itself.
        threshold: 0.9 for WUPS@0.9, 0 for WUPS@0, which discounts nothing.
        wordnet: NLTK's WordNet reader; None: `open_wordnet()`.

    Two empty answers are alike (1), an empty one and another are not (0). Plain accuracy is never above WUPS.
    Raises ValueError for lengths that differ, no question, or a threshold outside 0 .. 1; LookupError without WordNet.
    Source: Malinowski and Fritz, A Multi-World Approach to Question Answering, NeurIPS 2014, section 3; synsets, similarity and root by
    NLTK as in their code. That spaces stand for WordNet's underscores is ours.
    """
    check_answers(predictions, answers)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected 0 .. 1, got {threshold}")
    similarity = _similarity(wordnet or open_wordnet())

    def membership(first: str, second: str) -> float:
        found = similarity(*sorted((first, second)))
        return found if found >= threshold else _DISCOUNT * found

    scores = tuple(_set_score(_things(given), _things(true), membership) for given, true in zip(predictions, answers, strict=True))
    return Scores(sum(scores) / len(scores), scores)


def _things(answer: str) -> list[str]:
    return [joined for thing in answer.lower().split(",") if (joined := "_".join(thing.split()))]


def _set_score(given: list[str], true: list[str], membership: Callable[[str, str], float]) -> float:
    if not given or not true:
        return float(given == true)
    forward = math.prod(max(membership(thing, other) for other in true) for thing in given)
    return min(forward, math.prod(max(membership(thing, other) for other in given) for thing in true))


@lru_cache(maxsize=2)
def _similarity(wordnet) -> Callable[[str, str], float]:
    """The greatest similarity of two things' noun synsets, remembered by pair; 0 where WordNet lacks one."""
    synsets = lru_cache(maxsize=None)(lambda thing: tuple(wordnet.synsets(thing, "n")))

    @lru_cache(maxsize=None)
    def similarity(first: str, second: str) -> float:
        if first == second:
            return 1.0
        return max((one.wup_similarity(other) or 0.0 for one in synsets(first) for other in synsets(second)), default=0.0)

    return similarity
