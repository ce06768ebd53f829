"""Words of texts as tokens, and back."""

import pytest
import torch

from vqkit.language.text_vocabulary import TextVocabulary

TEXTS = ["A red dog runs.", "the dog, it's big", "a dog"]


def test_texts_come_back_as_their_words():
    vocabulary = TextVocabulary.build(TEXTS)
    tokens = vocabulary.encode(["The DOG runs", "a cat."], 6)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 6)
    assert vocabulary.decode(tokens) == ["the dog runs", "a [unknown] ."]
    assert tokens[0, 3] == vocabulary.end and (tokens[0, 4:] == -1).all()


def test_a_long_text_is_cut_and_has_no_end():
    vocabulary = TextVocabulary.build(TEXTS)
    tokens = vocabulary.encode(["a red dog runs ."], 3)
    assert (tokens != vocabulary.end).all() and vocabulary.decode(tokens) == ["a red dog"]


def test_the_most_frequent_words_stay():
    vocabulary = TextVocabulary.build(TEXTS, size=5)
    assert len(vocabulary) == 5
    assert vocabulary.decode(vocabulary.encode(["a red dog"], 4)) == ["a [unknown] dog"]


def test_it_is_the_same_from_json():
    vocabulary = TextVocabulary.build(TEXTS)
    again = TextVocabulary.from_json(vocabulary.to_json())
    assert len(again) == len(vocabulary) and (again.unknown, again.end, again.mask) == (vocabulary.unknown, vocabulary.end, vocabulary.mask)
    assert torch.equal(again.encode(TEXTS, 8), vocabulary.encode(TEXTS, 8))


def test_nothing_to_learn_from_and_nothing_to_read():
    with pytest.raises(ValueError, match="texts: expected at least one word, got none"):
        TextVocabulary.build([" ", ""])
    with pytest.raises(ValueError, match="vocabulary: not a vocabulary of texts"):
        TextVocabulary.from_json("{}")


def test_an_empty_text_is_an_end():
    vocabulary = TextVocabulary.build(TEXTS)
    assert vocabulary.encode([""], 3).tolist() == [[vocabulary.end, -1, -1]]
