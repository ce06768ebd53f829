"""METEOR against METEOR 1.5 where Java, its jar and WordNet are, and against its formula."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vqkit.metrics import meteor, open_wordnet
from vqkit.metrics.meteor import align
from vqkit.metrics.meteor_words import EXACT, STEM, SYNONYM, WordMatcher, meteor_tokens


def expected(precision, recall, chunks, matches):
    return 1 / (0.15 / precision + 0.85 / recall) * (1 - 0.6 * (chunks / matches) ** 0.2)


@pytest.fixture(scope="module")
def meteor_jar():
    """METEOR 1.5 without its paraphrases: (hypotheses, references) -> the score of each, then of all."""
    if shutil.which("java") is None:
        pytest.skip("no Java")
    folder = Path(pytest.importorskip("pycocoevalcap.meteor.meteor").__file__).parent
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm", "-m", "exact stem synonym",
               "-w", "1.0 0.6 0.8", "-p", "0.85 0.2 0.6 0.75"]  # fmt: skip

    def score(hypotheses, references):
        with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as jar:
            rows = []
            for hypothesis, own in zip(hypotheses, references, strict=True):
                print(" ||| ".join(["SCORE", *own, hypothesis]), file=jar.stdin, flush=True)
                rows.append(jar.stdout.readline().strip())
            print(" ||| ".join(["EVAL", *rows]), file=jar.stdin, flush=True)
            scores = [float(jar.stdout.readline()) for _ in range(len(rows) + 1)]
            jar.stdin.close()
        return scores[:-1], scores[-1]

    return score


def test_scores_equal_meteor_1_5(captions, meteor_jar, full_wordnet):
    hypotheses, references = captions
    each, corpus = meteor_jar(hypotheses, references)
    ours = meteor(hypotheses, references, tokenize=str.split, wordnet=full_wordnet)
    assert ours.each == pytest.approx(each, abs=1e-12)
    assert ours.corpus == pytest.approx(corpus, abs=1e-12)
    assert 0.2 < corpus < 0.9


def test_synonyms_of_wordnet_match(meteor_jar, full_wordnet):
    pairs = {
        "the car stopped": "the automobile halted", "a child ran quickly": "kids running rapidly", "two geese": "a goose", "a handful": "hands full",
        "wolves jumped": "a wolf leaps", "bikes and bicycles": "bicycle", "he purchased a couch": "he bought a sofa", "a policeman": "some policemen",
    }  # fmt: skip
    each, _ = meteor_jar(list(pairs), [[text] for text in pairs.values()])
    assert meteor(list(pairs), [[text] for text in pairs.values()], wordnet=full_wordnet).each == pytest.approx(each, abs=1e-12)
    assert each[0] == pytest.approx(expected((0.25 + 2 * 0.6) / 1.75, (0.25 + 2 * 0.6) / 1.75, 1, 3) / (1 - 0.6 * (1 / 3) ** 0.2))


def test_meteor_is_its_formula(small_wordnet):
    def score(*texts):
        hypothesis, *references = texts
        return meteor([hypothesis], [references], wordnet=small_wordnet).each[0]

    # A function word weighs 0.25, a content word 0.75; synonyms count 0.8; matched whole and in order: no penalty.
    assert score("the car stopped", "the automobile halted") == pytest.approx((0.25 + 2 * 0.75 * 0.8) / 1.75)
    assert score("the dog", "the dog") == 1
    # Stems 0.6: "dogs" and "dog".
    assert score("big dogs", "big dog") == pytest.approx(1.6 / 2)
    # Two chunks of one word each, then one word too many.
    assert score("dog cat", "cat dog") == pytest.approx(expected(1, 1, 2, 2))
    assert score("red dog", "dog") == pytest.approx(expected(1 / 2, 1, 1, 1))
    # The best of the references.
    assert score("red dog", "cat", "dog", "blue") == score("red dog", "dog")
    assert score("zebra", "dog") == score("", "dog") == score("dog", "") == score("", "") == 0


def test_the_corpus_is_scored_by_its_sums(small_wordnet):
    ours = meteor(["red dog", "a cat"], [["dog"], ["a cat"]], wordnet=small_wordnet)
    # Matched: 0.75 + 1 of 1.5 + 1 and of 0.75 + 1; the second, whole, adds no chunk to the three matches.
    assert ours.corpus == pytest.approx(expected(1.75 / 2.5, 1, 1, 3))
    assert ours.each == (pytest.approx(expected(1 / 2, 1, 1, 1)), 1.0)


def test_words_match_by_form_stem_and_synonym(small_wordnet):
    matcher = WordMatcher(small_wordnet)
    assert matcher.stages("dog", "dog") == (EXACT,)
    assert matcher.stages("dogs", "dog") == (STEM, SYNONYM)
    assert matcher.stages("jumping", "jumps") == (STEM,)
    assert matcher.stages("cars", "automobile") == (SYNONYM,)
    # An irregular form, and a noun against a verb.
    assert matcher.stages("ran", "runs") == (SYNONYM,)
    assert matcher.stages("car", "cat") == matcher.stages("zebra", "quux") == ()


def test_words_align_in_few_chunks(small_wordnet):
    matcher = WordMatcher(small_wordnet)
    # Of two "the", the one that stands before the dog.
    assert align("the cat the dog".split(), "the dog".split(), matcher) == [(2, EXACT), (3, EXACT)]
    # One to one: a second "dog" has nothing left.
    assert sum(match is not None for match in align(["dog"], ["dog", "dog"], matcher)) == 1
    # An exact match before a synonym.
    assert align(["automobile", "car"], ["car"], matcher) == [(1, EXACT)]


def test_tokens_are_split_as_meteor_does():
    assert meteor_tokens(["a", "man", "'s", "black-and-white", "t-shirt", "is", "n't"]) == tuple("a man ' s black and white t shirt is n 't".split())
    assert meteor_tokens(["u.s.", "$5", "a/b", "3,000", "x."]) == tuple("us $ 5 a / b 3,000 x .".split())


def test_without_wordnet_the_error_says_how_to_install_it(no_wordnet):
    with pytest.raises(LookupError, match="no WordNet 3.0 found: install Debian's package wordnet-base.*WORDNET_DICT"):
        meteor(["a dog"], [["a cat"]])


def test_a_wordnet_folder_is_found_by_the_variable(monkeypatch, small_wordnet_folder, small_wordnet, tmp_path):
    monkeypatch.setenv("WORDNET_DICT", str(small_wordnet_folder))
    assert open_wordnet() is small_wordnet
    with pytest.raises(ValueError, match="folder: .* is not a WordNet 3.0 dictionary folder; it lacks index.noun, .*data.adv"):
        open_wordnet(tmp_path)
