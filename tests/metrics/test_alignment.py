"""Hidden words."""

import pytest
import torch

from vqkit.metrics import choose_words, words_right


def test_the_words_of_the_lowest_draws_are_chosen_whole():
    words = torch.tensor([[-1, 0, 1, 1, 2, -1], [-1, 0, 1, -1, -1, -1], [-1] * 6])
    draws = torch.tensor([[0.9, 0.1, 0.5, 0.0, 0.0, 0.0], [0.2, 0.7, 0.0, 0.0, 0.0, 0.0], [0.5] * 6])
    assert choose_words(words, draws, 1).tolist() == [[False, False, True, True, False, False], [False, True] + [False] * 4, [False] * 6]
    assert choose_words(words, draws, 2).tolist() == [[False, False, True, True, True, False], [False, True, True] + [False] * 3, [False] * 6]
    # Too few words for three: none.
    assert choose_words(words, draws, 3).sum(1).tolist() == [4, 0, 0]
    with pytest.raises(ValueError, match="count"):
        choose_words(words, draws, 0)


def test_a_word_is_right_with_all_its_pieces():
    logits = torch.eye(5)[torch.tensor([3, 1, 2, 4, 0])]
    assert words_right(logits, torch.tensor([3, 1, 0, 4, 0]), torch.tensor([7, 2, 2, 9, 9])).tolist() == [False, True, True]
    assert words_right(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).shape == (0,)
