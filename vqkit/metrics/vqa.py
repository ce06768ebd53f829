"""Answers to questions about pictures: right or wrong, and right as far as people agree."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vqkit.metrics.caption_tokens import Scores

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Periods inside numbers stay.
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w\s.']|_")


def normalize_answer(answer: str) -> str:
    """An answer as it is compared: lower case, no articles, punctuation or apostrophes, numbers up to ten as digits, single spaces.

    Source: the evaluation of VQA, Antol et al., ICCV 2015; that apostrophes are dropped, where it restores those missing from a list of
    contractions, is ours.
    """
    text = _THOUSANDS.sub("", answer.lower().replace("’", "'"))
    words = _PUNCTUATION.sub(" ", text).replace("'", "").split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(predictions: Sequence[str], answers: Sequence[str]) -> Scores:
    """1 for each prediction that equals the answer once both are normalised, else 0; of the corpus the mean.

    predictions, answers: one string a question. Raises ValueError for lengths that differ or no question.
    """
    check_answers(predictions, answers)
    return _mean(float(normalize_answer(given) == normalize_answer(true)) for given, true in zip(predictions, answers, strict=True))


def soft_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]], *, leave_one_out: bool = False) -> Scores:
    """How many people gave the predicted answer: 1 from three on.

        min(n / 3, 1), n the answers equal to the prediction once both are normalised

    Args:
        predictions: one string a question.  answers: those of several people, ten in VQA.
        leave_one_out: the mean over leaving out each of the answers, as VQA's own evaluation does: three of ten then give 0.9.

    Returns a score a question, 0 .. 1, and their mean. Raises ValueError for lengths that differ, no question, a question without answer, or
    with a single one that would be left out.
    Source: VQA, Antol et al., ICCV 2015, section 3.
    """
    check_answers(predictions, answers)
    scores = []
    for question, (given, people) in enumerate(zip(predictions, answers, strict=True)):
        if isinstance(people, str):
            raise TypeError(f"answers: expected a list of strings for each question, got the string {people!r:.80} for question {question}")
        if len(people) < 1 + leave_one_out:
            raise ValueError(f"answers: expected at least {1 + leave_one_out} a question, got {len(people)} for question {question}")
        given, total = normalize_answer(given), len(people)
        agree = sum(normalize_answer(answer) == given for answer in people)
        if leave_one_out:
            scores.append((agree * min((agree - 1) / 3, 1) + (total - agree) * min(agree / 3, 1)) / total)
        else:
            scores.append(min(agree / 3, 1))
    return _mean(scores)


def check_answers(predictions: Sequence[str], answers: Sequence) -> None:
    """Raises TypeError for a string in place of a list of them, ValueError for lengths that differ or no question."""
    for name, given in (("predictions", predictions), ("answers", answers)):
        if isinstance(given, str):
            raise TypeError(f"{name}: expected one a question, got the string {given!r:.80}")
    if len(predictions) != len(answers):
        raise ValueError(f"answers: expected one a prediction, {len(predictions)}, got {len(answers)}")
    if not len(predictions):
        raise ValueError("predictions: expected at least one, got none")


def _mean(scores) -> Scores:
    scores = tuple(scores)
    return Scores(sum(scores) / len(scores), scores)
