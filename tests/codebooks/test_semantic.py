"""Assignment by feature and class against float64 brute force, and the histograms of classes."""

import pytest
import torch

from vqkit.codebooks import EMACodebook, SemanticCodebook, accumulate


def make(size=20, dim=6, classes=4, **options):
    """One whose codes have seen classes."""
    book = SemanticCodebook(size, dim, classes, **options)
    book.class_counts.copy_(torch.rand(size, classes).pow(4) * 10)
    book.class_counts[3] = 0
    return book


def costs(book, latents, classes):
    smoothed = book.class_counts.double() + book.eps
    share = smoothed / smoothed.sum(1, keepdim=True)
    found = (latents.double()[:, None] - book.codes.double()).square().sum(-1)
    penalty = book.weight * (1 - share.T[classes.clamp(min=0)])
    return found + penalty * (classes >= 0)[:, None]


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0, 40.0])
@pytest.mark.parametrize("classes", [1, 4, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignment_is_the_least_cost(weight, classes, dtype):
    book = make(classes=classes, weight=weight).to(dtype)
    latents, known = torch.randn(3000, 6, dtype=dtype), torch.randint(-1, classes, (3000,))
    expected = costs(book, latents, known)
    found = book.assign(latents, known)
    least, second = expected.topk(2, largest=False).values.unbind(1)
    # Sums of rounded squares in float32: equal wherever the margin exceeds that.
    rounding = 1e-5 * (1 + weight)
    torch.testing.assert_close(expected.gather(1, found[:, None])[:, 0], least, rtol=0, atol=rounding)
    clear = second - least > rounding
    assert clear.float().mean() > 0.9 and torch.equal(found[clear], expected.argmin(1)[clear])
    if weight and classes > 1:
        assert not torch.equal(found, book.assign(latents, torch.full_like(known, -1)))


def test_histograms_follow_their_formula():
    book = make(decay=0.9)
    codes, before = book.codes.clone(), book.class_counts.clone()
    latents, known, indices = torch.randn(500, 6), torch.randint(-1, 4, (500,)), torch.randint(-1, 20, (500,))
    plain = EMACodebook(20, 6, decay=0.9)
    plain.load_state_dict({name: value for name, value in book.state_dict().items() if name != "class_counts"})
    book.observe(book.labelled(latents, known), indices)
    plain.observe(latents, indices)
    assert torch.equal(book.codes, plain.codes) and torch.equal(book.cluster_size, plain.cluster_size)
    assert not torch.equal(book.codes, codes)
    counted = torch.zeros(20, 4)
    for code, label in zip(indices.tolist(), known.tolist()):
        if code >= 0 and label >= 0:
            counted[code, label] += 1
    torch.testing.assert_close(book.class_counts, 0.9 * before + 0.1 * counted)
    share = book.class_probabilities
    torch.testing.assert_close(share.sum(1), torch.ones(20))
    torch.testing.assert_close(share, (book.class_counts + 1e-5) / (book.class_counts + 1e-5).sum(1, keepdim=True))
    # Without labels codes learn and histograms stay; of a code that has none all classes are as likely.
    kept = book.class_counts.clone()
    book.observe(latents, indices)
    assert torch.equal(book.class_counts, kept)
    torch.testing.assert_close(SemanticCodebook(5, 2, 4).class_probabilities, torch.full((5, 4), 0.25))


def test_a_replaced_code_forgets_its_classes():
    book = make(decay=0.5, threshold_ema_dead_code=0.4)
    latents = torch.randn(50, 6)
    for _ in range(2):
        book.observe(book.labelled(latents, torch.zeros(50, dtype=torch.int64)), torch.zeros(50, dtype=torch.int64))
    assert book.class_counts[0, 0] > 10 and not book.class_counts[1:].any()
    assert (book.codes[1:, None] == latents).all(-1).any(1).all()


def test_accumulated_micro_batches_are_one_batch():
    torch.manual_seed(1)
    whole = make(decay=0.8)
    torch.manual_seed(1)
    parts = make(decay=0.8)
    latents, known, indices = torch.randn(60, 6), torch.randint(-1, 4, (60,)), torch.randint(-1, 20, (60,))
    whole.observe(whole.labelled(latents, known), indices)
    with accumulate(parts):
        parts.observe(parts.labelled(latents[:40], known[:40]), indices[:40])
    parts.observe(parts.labelled(latents[40:], known[40:]), indices[40:])
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_casts_leave_the_histograms_in_float32():
    book = make().to(torch.bfloat16)
    assert book.class_counts.dtype == torch.float32


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match="classes: expected at least 1, got 0"):
        SemanticCodebook(4, 2, 0)
    with pytest.raises(ValueError, match="weight: expected at least 0, got -1"):
        SemanticCodebook(4, 2, 3, weight=-1)
