"""LG-VQ's formulas against plain float64 loops."""

import math

import pytest
import torch

from vqkit.objectives.alignment import global_alignment, nearest_positions, relation_errors, word_states

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def cosine(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("dtype, tolerance", DTYPES)
@pytest.mark.parametrize("batch, texts, first", [(1, 1, 0), (5, 5, 0), (3, 8, 4)])
def test_global_alignment_is_the_papers_formula(dtype, tolerance, batch, texts, first):
    pictures, sentences = torch.randn(batch, 7, dtype=dtype), torch.randn(texts, 7, dtype=dtype)
    present = torch.ones(texts, dtype=torch.bool)
    present[-1] = texts == 1
    own = first + torch.arange(batch)
    found = global_alignment(pictures, sentences, own, present)
    for i in range(batch):
        total = sum(math.exp(cosine(pictures[i], sentences[j])) for j in range(texts) if present[j])
        expected = -math.log(math.exp(cosine(pictures[i], sentences[own[i]])) / total) if present[own[i]] else 0.0
        assert float(found[i]) == pytest.approx(expected, abs=tolerance)


def test_a_picture_without_text_gets_no_gradient_and_is_nobodys_alternative():
    pictures = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([True, False, True, True])
    global_alignment(pictures, texts, torch.arange(4), present).sum().backward()
    assert pictures.grad[1].count_nonzero() == 0 and (pictures.grad[present].norm(dim=1) > 0).all() and texts.grad is None
    alone = pictures.detach()[present].requires_grad_()
    global_alignment(alone, texts[present], torch.arange(3), torch.ones(3, dtype=torch.bool)).sum().backward()
    torch.testing.assert_close(pictures.grad[present], alone.grad)
    nobody = global_alignment(pictures, texts, torch.arange(4), torch.zeros(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(nobody.sum(), pictures)
    assert nobody.count_nonzero() == 0 and gradient.count_nonzero() == 0


def test_a_word_is_the_mean_of_its_pieces():
    states = torch.randn(2, 6, 3, dtype=torch.float64)
    words = torch.tensor([[-1, 0, 1, 1, 1, -1], [-1, -1, -1, -1, -1, -1]])
    found, exist = word_states(states, words)
    torch.testing.assert_close(found[0, 0], states[0, 1])
    torch.testing.assert_close(found[0, 1], states[0, 2:5].mean(0))
    assert exist.tolist() == [[True, True] + [False] * 4, [False] * 6]


@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_relations_are_compared_pair_by_pair(dtype, tolerance):
    words, codes = torch.randn(2, 5, 4, dtype=dtype, requires_grad=True), torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    exist = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    sums, pairs = relation_errors(words, codes, exist)
    there = [0, 2, 3]
    expected = sum((cosine(words[0, i], words[0, j]) - cosine(codes[0, i], codes[0, j])) ** 2 for i in there for j in there if i < j)
    assert sums.tolist() == pytest.approx([expected, 0.0], rel=tolerance * 10) and pairs.tolist() == [3, 0]
    sums.sum().backward()
    assert words.grad is None and codes.grad[~exist].count_nonzero() == 0 and codes.grad[0, 2].norm() > 0


def test_the_nearest_position_has_the_largest_cosine_whatever_its_length():
    words, positions = torch.randn(2, 3, 5), torch.randn(2, 9, 5)
    found = nearest_positions(words, positions * torch.rand(2, 9, 1).add(0.1))
    for b in range(2):
        for w in range(3):
            assert int(found[b, w]) == max(range(9), key=lambda k: cosine(words[b, w], positions[b, k]))
