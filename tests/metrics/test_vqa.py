"""Accuracy of answers, and WUPS against NLTK's Wu-Palmer similarity and values computed by hand."""

import math
import random

import pytest

from vqkit.metrics import answer_accuracy, normalize_answer, soft_accuracy, wups


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog.", "dog"), ("  two  cats ", "2 cats"), ("a red, big ball!", "red big ball"), ("None", "0"), ("3.5", "3.5"), ("1,000", "1000"),
        ("don't", "dont"), ("don’t", "dont"), ("yes/no", "yes no"), ("t-shirt", "t shirt"), ("p.m.", "p m"), ("An", ""), ("Ünder", "ünder"),
    ],
)  # fmt: skip
def test_answers_are_compared_in_their_normal_form(answer, normal):
    assert normalize_answer(answer) == normal == normalize_answer(normal)


def test_accuracy_counts_equal_answers():
    assert answer_accuracy(["a dog", "Two.", "cat"], ["dog", "2", "dog"]) == (pytest.approx(2 / 3), (1.0, 1.0, 0.0))


def test_soft_accuracy_counts_people():
    people = ["yes"] * 3 + ["no"] * 2 + ["Maybe."] + ["four"] * 4
    found = soft_accuracy(["Yes", "no", "maybe", "4", "never"], [people] * 5)
    assert found.each == pytest.approx([1, 2 / 3, 1 / 3, 1, 0]) and found.corpus == pytest.approx(3 / 5)
    # Of the ten leave-one-out sets, three lack one of three equal answers.
    found = soft_accuracy(["yes", "no", "4", "never"], [people] * 4, leave_one_out=True)
    rest = [[answer for place, answer in enumerate(people) if place != out] for out in range(10)]
    assert found.each == pytest.approx([sum(min(own.count(word) / 3, 1) for own in rest) / 10 for word in ("yes", "no", "four", "never")])
    assert found.each[0] == pytest.approx(0.9)


def test_wups_is_its_formula(small_wordnet):
    def score(given, true, threshold):
        return wups([given], [true], threshold, wordnet=small_wordnet).each[0]

    # entity 1, object 2, animal 3, dog 4: the least common subsumer of dog and cat is animal.
    assert score("dog", "cat", 0) == pytest.approx(2 * 3 / (4 + 4))
    assert score("dog", "cat", 0.9) == pytest.approx(0.1 * 2 * 3 / 8)
    assert score("dog", "cat", 0.75) == pytest.approx(0.75)
    assert score("dog", "chair", 0) == pytest.approx(2 * 2 / (4 + 4))
    assert score("dogs", "animal", 0) == pytest.approx(2 * 3 / (3 + 4))
    assert score("Car", "automobile", 0.9) == score("zebra", "zebra", 0.9) == 1
    assert score("zebra", "dog", 0) == 0
    # Several words: one thing of WordNet.
    assert score("night  stand", "bedside table", 0.9) == 1
    assert score("night stand", "furniture", 0) == pytest.approx(2 * 4 / (4 + 5))
    # Sets: each of one finds its like in the other; an answer too many costs its own likeness.
    assert score("cat, dog", "dog,cat", 0.9) == 1
    assert score("dog", "dog, cat", 0) == score("dog, cat", "dog", 0) == pytest.approx(0.75)
    assert score("dog, chair", "cat", 0) == pytest.approx(min(0.75 * 0.5, 0.75))
    assert (score("", "", 0.9), score("", "dog", 0), score(" , ", "dog", 0)) == (1, 0, 0)
    found = wups(["dog", "dog"], ["dog", "cat"], 0, wordnet=small_wordnet)
    assert found.corpus == pytest.approx(sum(found.each) / 2)


def test_wups_is_that_of_the_published_code(full_wordnet):
    """Malinowski's measure, written out over NLTK's similarity."""

    def likeness(first, second, threshold):
        if first == second:
            return 1.0
        pairs = [(one, other) for one in full_wordnet.synsets(first, pos="n") for other in full_wordnet.synsets(second, pos="n")]
        best = max((one.wup_similarity(other) for one, other in pairs), default=0)
        return best if best >= threshold else 0.1 * best

    words = "dog cat man giraffe snow table pizza bus red four kitchen laptop people".split()
    draw = random.Random(0)
    answers = [draw.sample(words, draw.choice((1, 1, 2))) for _ in range(50)]
    for threshold in (0.0, 0.9):
        expected = []
        for given, true in zip(answers[::2], answers[1::2], strict=True):
            forward = math.prod(max(likeness(a, t, threshold) for t in true) for a in given)
            expected.append(min(forward, math.prod(max(likeness(t, a, threshold) for a in given) for t in true)))
        found = wups([", ".join(own) for own in answers[::2]], [", ".join(own) for own in answers[1::2]], threshold, wordnet=full_wordnet)
        assert found.each == pytest.approx(expected, abs=1e-12)
    assert wups(["dog"], ["cat"], 0, wordnet=full_wordnet).corpus == pytest.approx(0.8571428571)


def test_wups_without_wordnet_says_how_to_install_it(no_wordnet):
    with pytest.raises(LookupError, match="wordnet-base"):
        wups(["dog"], ["cat"])


def test_wrong_answers_are_named(small_wordnet):
    for score in (answer_accuracy, soft_accuracy, wups):
        with pytest.raises(ValueError, match="answers: expected one a prediction, 2, got 1"):
            score(["a", "b"], ["a"])
        with pytest.raises(ValueError, match="predictions: expected at least one, got none"):
            score([], [])
        with pytest.raises(TypeError, match="predictions: expected one a question"):
            score("a", ["a"])
    with pytest.raises(ValueError, match="answers: expected at least 2 a question, got 1 for question 0"):
        soft_accuracy(["a"], [["a"]], leave_one_out=True)
    with pytest.raises(TypeError, match="answers: expected a list of strings for each question"):
        soft_accuracy(["a"], ["a"])
    with pytest.raises(ValueError, match="threshold: expected 0 .. 1, got 1.5"):
        wups(["a"], ["a"], 1.5, wordnet=small_wordnet)
