"""Classes guide training only: clusters become pure, and quantizing needs no classes."""

import copy

import pytest
import torch

from vqkit.codebooks import EMACodebook, SemanticCodebook
from vqkit.quantizers import Quantizer, SemanticQuantizer


def make(weight=1.0, size=20, **options):
    torch.manual_seed(1)
    quantizer = SemanticQuantizer(SemanticCodebook(size, 6, 3, weight=weight, decay=0.9), **options)
    quantizer.codebook.class_counts.copy_(torch.rand(size, 3).pow(4))
    return quantizer


def test_training_takes_the_assigned_codes_and_eval_the_nearest():
    quantizer = make()
    x, classes = torch.randn(4, 30, 6, requires_grad=True), torch.randint(-1, 3, (4, 30))
    codes, assigned = quantizer.codes.clone(), quantizer.codebook.assign(x.reshape(-1, 6), classes.reshape(-1))
    result = quantizer(x, classes=classes)
    assert torch.equal(result.indices.reshape(-1), assigned)
    torch.testing.assert_close(result.quantized, codes[assigned].view_as(x))
    torch.testing.assert_close(result.loss, 0.25 * (x - codes[assigned].view_as(x)).square().mean())
    (gradient,) = torch.autograd.grad(result.quantized.sum() + result.loss, x)
    torch.testing.assert_close(gradient, 1 + 0.5 * (x - codes[assigned].view_as(x)) / x.numel())
    assert not torch.equal(quantizer.codes, codes)
    quantizer.eval()
    found = quantizer(x, classes=classes)
    assert torch.equal(found.indices, quantizer(x).indices) and torch.equal(found.indices, quantizer.encode(x))
    assert torch.equal(quantizer.decode(found.indices), found.quantized)


def test_without_weight_or_classes_it_is_a_quantizer():
    x, classes = torch.randn(4, 30, 6), torch.randint(-1, 3, (4, 30))
    for quantizer, given in ((make(weight=0.0), classes), (make(), None)):
        plain = Quantizer(6, 20, codebook=EMACodebook(20, 6, decay=0.9), commitment_weight=0.25)
        state = {name: value for name, value in quantizer.state_dict().items() if "class_counts" not in name}
        plain.load_state_dict(state)
        for _ in range(3):
            assert torch.equal(quantizer(x, classes=given).indices, plain(x).indices)
        torch.testing.assert_close(quantizer.codes, plain.codes)


def test_clusters_become_pure():
    """Two classes whose features overlap: the codes of one differ from those of the other with the guidance."""
    purity = []
    for weight in (0.0, 5.0):
        quantizer = make(weight, size=8)
        quantizer.codebook.class_counts.zero_()
        for _ in range(60):
            classes = torch.randint(0, 2, (256,))
            x = torch.randn(256, 6)
            x[:, 0] += classes
            quantizer(x, classes=classes)
        share = quantizer.codebook.class_counts / quantizer.codebook.class_counts.sum()
        purity.append(share.amax(1).sum().item())
    assert purity[1] > 0.95 > 0.85 > purity[0], purity


def test_rows_left_out_do_not_matter():
    results = []
    x, mask, classes = torch.randn(4, 10, 6), torch.rand(4, 10) > 0.3, torch.randint(-1, 3, (4, 10))
    for rows, keep, known in ((x, mask, classes), (x.masked_fill(~mask[..., None], torch.nan), None, classes.masked_fill(~mask, 2))):
        quantizer = make()
        rows.requires_grad_()
        result = quantizer(rows, keep, known)
        (result.loss + result.quantized.square().sum()).backward()
        results.append([*result, result.counts, rows.grad, *quantizer.state_dict().values()])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


def test_layouts_frozen_steps_and_compilation():
    first, last = make(channel_first=True), make()
    x, classes = torch.randn(2, 4, 5, 6), torch.randint(-1, 3, (2, 4, 5))
    a, b = first(x.movedim(-1, 1), classes=classes), last(x, classes=classes)
    assert torch.equal(a.quantized.movedim(1, -1), b.quantized) and torch.equal(a.indices, b.indices)
    before = copy.deepcopy(last.codebook.state_dict())
    last(x, classes=classes, learn=False)
    torch.testing.assert_close(last.codebook.state_dict(), before)
    torch._dynamo.reset()
    compiled = torch.compile(first, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x.movedim(-1, 1), classes=classes), last(x, classes=classes)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(first.state_dict(), last.state_dict())


def test_errors_name_what_does_not_fit():
    quantizer, x = make(), torch.randn(2, 3, 6)
    for classes, error, message in [
        (torch.zeros(2, 4, dtype=torch.int64), ValueError, r"classes: expected int64 of shape \(2, 3\), got torch.int64 \(2, 4\)"),
        (torch.zeros(2, 3), ValueError, "classes: expected int64"),
        (torch.full((2, 3), 3), IndexError, "classes: expected -1 <= class < 3, got 3..3"),
    ]:
        for mode in (True, False):
            with pytest.raises(error, match=message):
                quantizer.train(mode)(x, classes=classes)
    with pytest.raises(TypeError, match="codebook: expected a SemanticCodebook, got EMACodebook"):
        SemanticQuantizer(EMACodebook(4, 2))
