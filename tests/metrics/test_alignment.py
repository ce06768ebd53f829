"""Retrieval and hidden words, against loops."""

import pytest
import torch

from vqkit.metrics import choose_words, retrieval_recall, words_right


@pytest.mark.parametrize("count", [1, 7, 1500])
def test_retrieval_counts_the_texts_before_ones_own(count):
    pictures, texts = torch.randn(count, 5), torch.randn(count, 5)
    texts += pictures
    found = retrieval_recall(pictures, texts, torch.arange(count), (1, 3, 10))
    scores = torch.nn.functional.normalize(pictures.double()) @ torch.nn.functional.normalize(texts.double()).T
    ranks = (scores > scores.diag().unsqueeze(1)).sum(1)
    assert found == pytest.approx({k: float((ranks < k).double().mean()) for k in (1, 3, 10)})
    assert found[1] <= found[3] <= found[10] <= 1


def test_ties_count_against_and_the_same_text_does_not():
    pictures, texts = torch.ones(4, 3), torch.ones(4, 3)
    assert retrieval_recall(pictures, texts, torch.arange(4), (1, 3, 4)) == {1: 0.0, 3: 0.0, 4: 1.0}
    assert retrieval_recall(pictures, texts, torch.tensor([0, 0, 1, 1]), (1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}
    assert retrieval_recall(pictures, texts, torch.zeros(4), (1,)) == {1: 1.0}
    assert retrieval_recall(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_wrong_arguments_of_retrieval_are_named():
    with pytest.raises(ValueError, match="pictures, texts, same"):
        retrieval_recall(torch.zeros(2, 3), torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="ks: expected at least 1"):
        retrieval_recall(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2), (0,))


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
