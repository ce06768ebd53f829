"""Parts of speech and lemmas on captions that a word list alone gets wrong."""

import subprocess
import sys

import pytest

from vqkit.language import noun_lemma, tag_words, tokenize, word_source
from vqkit.language.lexicon import default_lexicon, shipped_lexicon


def words_tagged(caption, tag):
    return [word.lemma for word in tag_words(caption, shipped_lexicon()) if word.tag == tag]


@pytest.mark.parametrize(
    "caption, adjectives, nouns",
    [
        ("A man in an orange hat peels an orange .", ["orange"], ["man", "hat", "orange"]),
        ("The light brown dog runs in the light", ["light", "brown"], ["dog", "light"]),
        ("a young boy on his back in the white water", ["young", "white"], ["boy", "back", "water"]),
        ("a black and white dog with little running shoes", ["black", "white", "little", "running"], ["dog", "shoe"]),
        ("A woman plays guitar while children walk by the parked cars.", ["parked"], ["woman", "guitar", "child", "car"]),
        ("A man rides a wave on his surfboard", [], ["man", "wave", "surfboard"]),
        ("Boy swings on swings", [], ["boy", "swing"]),
        ("Three dogs play in the snow", [], ["dog", "snow"]),
        ("a group of people in front of a building next to the man's car", [], ["group", "people", "building", "man", "car"]),
        ("A tri-colored dog isn't running", ["tri-colored"], ["dog"]),
        ("a large red striped circle above a small blue square", ["large", "red", "striped", "small", "blue"], ["circle", "square"]),
        ("A fire truck and a stone wall", [], ["fire", "truck", "stone", "wall"]),
        ("A larger dog chases a small tan dog", ["small", "tan"], ["dog", "dog"]),
        ("The kitchen sink is clean", ["clean"], ["kitchen", "sink"]),
        ("It's raining on the boy's head", [], ["boy", "head"]),
        ("a wakeboarder in a bmx helmet", [], ["wakeboarder", "bmx", "helmet"]),
    ],
)
def test_adjectives_and_nouns_of_tricky_captions(caption, adjectives, nouns):
    assert words_tagged(caption, "adjective") == adjectives
    assert words_tagged(caption, "noun") == nouns


def test_comparatives_are_not_adjectives():
    assert words_tagged("a larger dog chases the smallest cat", "comparative") == ["larger", "smallest"]


@pytest.mark.parametrize("word", "a an the in on at as i it he is was be have can two one ten no or so us am do who may".split())
def test_function_words_that_wordnet_lists_never_become_nouns_or_adjectives(word):
    for caption in (word, f"{word} dog", f"the dog {word} the house", f"dogs {word}"):
        tags = {found.tag for found in tag_words(caption, shipped_lexicon()) if found.text == word}
        assert not tags & {"adjective"} and (word == "can" or "noun" not in tags), caption


@pytest.mark.parametrize(
    "form, lemma",
    [
        ("children", "child"), ("women", "woman"), ("men", "man"), ("buses", "bus"), ("glasses", "glass"), ("feet", "foot"),
        ("hands", "hand"), ("leaves", "leaf"), ("puppies", "puppy"), ("benches", "bench"), ("Dogs", "dog"), ("mice", "mouse"),
        ("pants", "pants"), ("stairs", "stairs"), ("sunglasses", "sunglasses"), ("gas", "gas"), ("bus", "bus"), ("grass", "grass"),
        ("people", "people"), ("shorts", "shorts"), ("wakeboarders", "wakeboarders"),
        ("wales", "wales"), ("Brooks", "brooks"), ("adams", "adams"), ("fields", "field"), ("tigers", "tiger"), ("parks", "park"), ("logos", "logo"),
    ],
)  # fmt: skip
def test_noun_lemmas(form, lemma):
    assert noun_lemma(form, shipped_lexicon()) == lemma


def test_tokens_keep_hyphens_and_part_clitics_numbers_and_punctuation():
    assert tokenize("The man’s T-shirt isn't 12.5 cm, it's A-OK!") == [
        "the", "man", "'s", "t-shirt", "is", "n't", "12.5", "cm", ",", "it", "'s", "a-ok", "!",
    ]  # fmt: skip
    assert tokenize("") == [] == tag_words(" \n")
    assert [word.text for word in tag_words("un café noir ☕ 猫")] == ["un", "café", "noir", "☕", "猫"]


def test_tagging_does_not_depend_on_case_and_refuses_what_is_no_text():
    assert tag_words("A RED BUS") == tag_words("a red bus")
    with pytest.raises(TypeError, match="caption.*int"):
        tag_words(3)


def test_the_word_source_is_told():
    assert word_source() == default_lexicon().source in ("nltk", "shipped")


def test_concrete_nouns_are_told_from_abstract_ones():
    lexicon = shipped_lexicon()
    assert all(lexicon.is_concrete(noun) for noun in ("dog", "boat", "woman", "tree", "person", "sand", "square"))
    assert not any(lexicon.is_concrete(noun) for noun in ("idea", "freedom", "month", "reason", "wakeboarder"))


def test_importing_loads_neither_transformers_nor_nltk():
    code = "import sys, vqkit.language; print([name for name in ('transformers', 'nltk', 'triton') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
