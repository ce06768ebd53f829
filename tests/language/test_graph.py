"""The adjective-noun graph of hand-made captions, count by count."""

from collections import Counter

import pytest
import torch

from vqkit.language import count_words, word_edges

CAPTIONS = [
    "A small black dog and a black cat.",
    "Two black dogs on green grass",
    "The grass is green , the black dog sleeps",
    "a black, shiny car",
]


def test_counts_of_words_and_pairs():
    counts = count_words(CAPTIONS)
    assert counts.captions == 4
    assert counts.adjectives == Counter(black=5, green=2, small=1, shiny=1)
    assert counts.nouns == Counter(dog=3, grass=2, cat=1, car=1)
    assert counts.pairs == Counter({("black", "dog"): 3, ("black", "cat"): 1, ("green", "grass"): 1, ("shiny", "car"): 1})


def test_two_adjectives_link_only_the_last():
    pairs = count_words(["a large red striped circle"]).pairs
    assert pairs == Counter({("striped", "circle"): 1})


def test_an_adjective_links_the_word_directly_after_it():
    assert count_words(["a red fire truck"]).pairs == Counter({("red", "fire"): 1})


def test_edges_join_kept_words_only_in_order_and_once():
    pairs = count_words(CAPTIONS).pairs
    edges, counts = word_edges(pairs, ["green", "black"], ["cat", "dog", "grass", "tree"])
    assert edges.tolist() == [[0, 4], [1, 2], [1, 3]]
    assert counts.tolist() == [1, 1, 3]
    assert edges.dtype == counts.dtype == torch.int64


def test_no_edges_keep_their_shape():
    edges, counts = word_edges(Counter(), ["red"], ["dog"])
    assert edges.shape == (0, 2) and counts.shape == (0,)


def test_counts_add_over_captions_read_from_any_iterable():
    parts = [count_words([caption]) for caption in CAPTIONS]
    whole = count_words(caption for caption in CAPTIONS)
    assert sum((part.pairs for part in parts), Counter()) == whole.pairs
    assert sum((part.nouns for part in parts), Counter()) == whole.nouns


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_no_captions_is_an_error(captions):
    with pytest.raises(ValueError, match="captions: expected at least one"):
        count_words(captions)


def test_one_string_is_not_taken_for_captions():
    with pytest.raises(TypeError, match="captions.*one str"):
        count_words("a red dog")
    with pytest.raises(TypeError, match="caption.*NoneType"):
        count_words(["a red dog", None])
