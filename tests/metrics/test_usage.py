"""Codebook usage against counting by hand."""

import math
from collections import Counter

import pytest
import torch

from vqkit.metrics import CodebookUsage, count_codes


@pytest.mark.parametrize(
    ("sizes", "selections", "shape"),
    [((7,), (1,), (3, 4, 5)), ((7,), (2,), (3, 4, 2)), ((5, 9), (2, 1), (2, 3, 3, 3)), ((4,), (1,), (0,)), ((1,), (1,), (6,))],
)
def test_counts_equal_brute_force(sizes, selections, shape):
    generator = torch.Generator().manual_seed(0)
    columns = [k for k, s in zip(sizes, selections, strict=True) for _ in range(s)]
    indices = torch.stack([torch.randint(-1, k, (math.prod(shape),), generator=generator) for k in columns], -1)
    # shape ends in the number of columns where there are several
    indices = indices[: math.prod(shape) // len(columns)].reshape(shape)
    expected = [Counter() for _ in sizes]
    for row in indices.reshape(-1, len(columns)).tolist():
        position = 0
        for part, selection in enumerate(selections):
            for index in row[position : position + selection]:
                expected[part][index] += 1
            position += selection
    counts = count_codes(indices, sizes, selections)
    for part, (size, counted) in enumerate(zip(sizes, counts, strict=True)):
        assert counted.tolist() == [expected[part][k] for k in range(size)]


def test_usage_and_perplexity_over_batches():
    usage = CodebookUsage((4, 2))
    usage.add([torch.tensor([1, 0, 0, 0]), torch.tensor([0, 0])])
    usage.add([torch.tensor([1, 0, 2, 0]), torch.tensor([3, 3])])
    assert [part.tolist() for part in usage.counts] == [[2, 0, 2, 0], [3, 3]]
    assert usage.usage == pytest.approx(4 / 6)
    assert usage.part_usages == (0.5, 1.0)
    assert usage.part_perplexities == pytest.approx((2.0, 2.0))
    assert usage.perplexity == pytest.approx(2.0)


def test_uniform_skewed_and_single():
    usage = CodebookUsage((8,))
    usage.add([torch.full((8,), 5)])
    assert (usage.usage, usage.perplexity) == (1.0, pytest.approx(8.0))
    skewed = CodebookUsage((3,))
    skewed.add([torch.tensor([3, 1, 0])])
    assert skewed.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    single = CodebookUsage((1000,))
    single.add([torch.eye(1000, dtype=torch.int64)[3] * 12])
    assert (single.usage, single.perplexity) == (0.001, pytest.approx(1.0))


def test_nothing_counted():
    usage = CodebookUsage((4,))
    assert (usage.usage, usage.perplexity) == (0.0, 0.0)


def test_merge_equals_one_pass_and_reduced_leaves_it_alone():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 6, (5,), generator=generator) for _ in range(4)]
    whole, left, right = CodebookUsage((6,)), CodebookUsage((6,)), CodebookUsage((6,))
    for number, batch in enumerate(batches):
        whole.add(count_codes(batch, (6,), (1,)))
        (left if number % 2 else right).add(count_codes(batch, (6,), (1,)))
    left.merge(right)
    assert torch.equal(left.counts[0], whole.counts[0])
    alone = left.reduced()
    assert torch.equal(alone.counts[0], whole.counts[0])
    alone.add([torch.ones(6, dtype=torch.int64)])
    assert torch.equal(left.counts[0], whole.counts[0])


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"indices: got 0 \.\. 4, expected -1 \.\. 3"):
        count_codes(torch.tensor([0, 4]), (4,), (1,))
    with pytest.raises(ValueError, match="expected 3"):
        count_codes(torch.zeros(2, 2, dtype=torch.int64), (4, 4), (2, 1))
    with pytest.raises(ValueError, match="counts: got shapes"):
        CodebookUsage((4, 2)).add([torch.zeros(4)])
    with pytest.raises(ValueError, match="codebook_sizes: got"):
        CodebookUsage(())
