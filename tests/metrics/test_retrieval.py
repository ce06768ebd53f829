"""Retrieval, against loops."""

import pytest
import torch

from vqkit.metrics import median_rank, recall_at, retrieval_ranks, retrieval_recall


def test_the_rank_is_that_of_the_best_right_text():
    generator = torch.Generator().manual_seed(0)
    # Few values, so that many are equal.
    similarity = torch.randint(0, 6, (40, 30), generator=generator).float()
    right = torch.rand(40, 30, generator=generator) < 0.1
    right[torch.arange(40), torch.arange(40) % 30] = True
    expected = []
    for row, own in zip(similarity.tolist(), right.tolist(), strict=True):
        best = max(value for value, good in zip(row, own, strict=True) if good)
        expected.append(1 + sum(value >= best for value, good in zip(row, own, strict=True) if not good))
    ranks = retrieval_ranks(similarity, right)
    assert ranks.tolist() == expected
    assert recall_at(ranks, (1, 5, 30)) == {k: sum(rank <= k for rank in expected) / 40 for k in (1, 5, 30)}
    assert median_rank(ranks) == sorted(expected)[19] / 2 + sorted(expected)[20] / 2


def test_ties_count_against_the_picture():
    right = torch.eye(4, dtype=torch.bool)
    assert retrieval_ranks(torch.zeros(4, 4), right).tolist() == [4] * 4
    # Several right texts are no rivals, and the first of them counts.
    right[0, 1] = True
    assert retrieval_ranks(torch.zeros(4, 4), right)[0] == 3
    assert retrieval_ranks(torch.tensor([[1.0, 3.0, 2.0, 3.5]]), right[:1]).tolist() == [2]
    # The other way round: texts find pictures.
    assert retrieval_ranks(torch.eye(4).T, torch.eye(4, dtype=torch.bool).T).tolist() == [1] * 4
    assert recall_at(torch.zeros(0, dtype=torch.int64)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_wrong_ranks_are_named():
    with pytest.raises(ValueError, match="similarity, right"):
        retrieval_ranks(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="similarity, right.*torch.int64"):
        retrieval_ranks(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="right: expected at least one.*picture 1"):
        retrieval_ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="similarity: expected numbers"):
        retrieval_ranks(torch.tensor([[float("nan")]]), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="ranks: expected at least one"):
        median_rank(torch.zeros(0))
    with pytest.raises(ValueError, match="ks: expected at least 1"):
        recall_at(torch.ones(1), (0,))


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
