"""BLEU, ROUGE-L and CIDEr-D, against pycocoevalcap where it is installed and against values from their formulas."""

import math

import pytest

from vqkit.metrics import bleu, caption_scores, cider_d, rouge_l


def pycocoevalcap(module, scorer, hypotheses, references, **options):
    found = pytest.importorskip(f"pycocoevalcap.{module}.{module}")
    truths, results = dict(enumerate(references)), {place: [text] for place, text in enumerate(hypotheses)}
    return getattr(found, scorer)().compute_score(truths, results, **options)


@pytest.mark.parametrize("count", [None, 1, 2])
def test_scores_equal_pycocoevalcap(captions, count):
    hypotheses, references = (part[-count:] if count else part for part in captions)
    corpus, each = pycocoevalcap("bleu", "Bleu", hypotheses, references, verbose=0)
    ours = bleu(hypotheses, references, tokenize=str.split)
    assert ours.corpus == pytest.approx(corpus, rel=1e-12)
    assert all(row == pytest.approx(other, rel=1e-12) for row, other in zip(ours.each, each, strict=True))
    for name, scorer, function in (("rouge", "Rouge", rouge_l), ("cider", "Cider", cider_d)):
        corpus, each = pycocoevalcap(name, scorer, hypotheses, references)
        ours = function(hypotheses, references, tokenize=str.split)
        assert ours.corpus == pytest.approx(corpus, rel=1e-12)
        assert ours.each == pytest.approx(list(each), rel=1e-12)


def test_bleu_is_its_formula():
    # "the" is in a reference at most twice; two of six two-word n-grams match none.
    ours = bleu(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert ours.corpus[0] == pytest.approx(2 / 7, rel=1e-8)
    # Lengths 4 and 8: of references as close the shorter, so nothing is taken off; then one that is longer.
    assert bleu(["a b c d"], [["a b c d x", "a b c"]]).corpus[3] == pytest.approx(1, rel=1e-8)
    assert bleu(["a b c d"], [["a b c d x x"]]).corpus == pytest.approx([math.exp(1 - 6 / 4)] * 4, rel=1e-8)
    assert len(bleu(["a"], [["a"]], longest=2).corpus) == 2


def test_rouge_l_is_its_formula():
    # Longest common subsequence "police the gunman": 3 of 4 and 3 of 4.
    assert rouge_l(["police kill the gunman"], [["police killed the gunman"]]).corpus == pytest.approx(0.75)
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["police kill the gunman", "x"], [["police killed the gunman now"], ["y"]]).each == (pytest.approx(expected), 0.0)
    assert rouge_l(["", "."], [["a"], ["!"]]).each == (0.0, 0.0)


def test_cider_d_tells_pictures_apart():
    # What every picture's captions say has no weight; each of the other n-grams is alone to its picture.
    same = cider_d(["red dog here now", "blue cat here now"], [["red dog here now"], ["blue cat here now"]])
    assert same.each == pytest.approx((10.0, 10.0))
    assert cider_d(["here now", "blue cat here now"], [["red dog here now"], ["blue cat here now"]]).each[0] == pytest.approx(0)
    # Two words fewer: only the penalty of the length and the cosine of the shorter; one picture alone has no rare words.
    assert cider_d(["a b"], [["a b"]]).corpus == 0
    half = cider_d(["red dog", "x"], [["red dog runs far"], ["y"]]).each[0]
    cosines = 2 / math.sqrt(2 * 4) + 1 / math.sqrt(1 * 3)
    assert half == pytest.approx(10 / 4 * cosines * math.exp(-(2**2) / 72))


def test_captions_are_tokenised_unless_they_are():
    raw, reference = ["The dog's red."], [["the dog 's red"]]
    assert bleu(raw, reference).corpus[0] == pytest.approx(1, rel=1e-8) and rouge_l(raw, reference).corpus == 1
    assert rouge_l(raw, reference, tokenize=str.split).corpus == 0


def test_all_scores_at_once(monkeypatch, small_wordnet_folder):
    monkeypatch.setenv("WORDNET_DICT", str(small_wordnet_folder))
    found = caption_scores(["the car stopped", "a dog"], [["the automobile halted"], ["a cat"]])
    assert set(found) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "meteor"}
    assert all(isinstance(value, float) for value in found.values()) and found["meteor"] > 0


def test_without_wordnet_there_is_no_meteor(no_wordnet):
    assert set(caption_scores(["a dog"], [["a cat"]])) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"}


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match="longest: expected at least 1, got 0"):
        bleu(["a"], [["a"]], longest=0)
