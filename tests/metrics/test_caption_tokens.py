"""Tokens of captions, against Stanford's tokenizer where it and Java are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vqkit.metrics import bleu, caption_tokens
from vqkit.metrics.caption_tokens import tokenized

# Each with its tokens by pycocoevalcap's tokenizer.
CAPTIONS = {
    "A man's dog can't run, isn't it?": "a man 's dog ca n't run is n't it",
    "black-and-white cat; (two) [three] {x}": "black-and-white cat -lrb- two -rrb- -lsb- three -rsb- -lcb- x -rcb-",
    'He said "hello" & left...': "he said hello & left",
    "$5.00 at 3:30 p.m. U.S.A. e.g. this": "$ 5.00 at 3:30 p.m. u.s.a. e.g. this",
    "gonna cannot wanna": "gon na can not wan na",
    "100% of 1/2 cups 3,000": "100 % of 1/2 cups 3,000",
    "café naïve — dash – dash ‘quote’ “dq”": "café naïve dash dash quote dq",
    "t-shirt's #1 @ the * star + plus = x_y a/b": "t-shirt 's # 1 @ the * star + plus = x_y a/b",
    "the dogs' house at 5 o'clock": "the dogs house at 5 o'clock",
    "it's he'll they've I'm I'd won't": "it 's he 'll they 've i 'm i 'd wo n't",
    "www.foo.com foo@bar.com": "www.foo.com foo@bar.com",
    "wow!!! what?? yes!": "wow !!! what ?? yes",
    "-- - a -5 4-wheeler 5-6 5:54pm": "a -5 4-wheeler 5-6 5:54 pm",
    "Mr. Smith at No. 5, no. Dr. X etc.": "mr. smith at no. 5 no dr. x etc.",
    "1st 2nd 70's '70s 1990s": "1st 2nd 70 's '70s 1990s",
    "it ’s can’t man’s &amp; A&M": "it 's ca n't man 's & a&m",
    "man.dog a,b word...word end.": "man.dog a b word word end",
    "  two   spaces\tand a\nline ": "two spaces and a line",
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_tokens_are_those_of_published_scores(text):
    assert " ".join(caption_tokens(text)) == CAPTIONS[text]


def test_nothing_has_no_tokens():
    for text in ("", "  ", ".", "... -- '", '"'):
        assert caption_tokens(text) == ()


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_stanfords_tokenizer_gives_the_same(tmp_path):
    folder = Path(pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").__file__).parent
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    texts = [" ".join(text.split()) for text in CAPTIONS]
    (tmp_path / "captions.txt").write_text("\n".join(texts), encoding="utf-8")
    command = ["java", "-cp", str(folder / STANFORD_CORENLP_3_4_1_JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    result = subprocess.run([*command, str(tmp_path / "captions.txt")], capture_output=True, encoding="utf-8", check=True)
    lines = [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in result.stdout.split("\n")]
    assert lines[: len(texts)] == list(CAPTIONS.values())


def test_wrong_captions_are_named():
    with pytest.raises(ValueError, match="references: expected one list a hypothesis, 2, got 1"):
        bleu(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="references: expected at least one for each picture, got none for picture 1"):
        bleu(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="hypotheses: expected at least one, got none"):
        bleu([], [])
    with pytest.raises(TypeError, match="references: expected a list of strings.*picture 0"):
        tokenized(["a"], ["a"], str.split)
    with pytest.raises(TypeError, match="hypotheses: expected one string a picture"):
        tokenized([["a"]], [["a"]], str.split)
