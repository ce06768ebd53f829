"""Token maps of growing size: the published algorithm written out, its round trips, the model's inputs, masks and errors."""

import copy

import pytest
import torch
from torch.nn.functional import interpolate, mse_loss, normalize

from vqkit.codebooks import EMACodebook
from vqkit.quantizers.multi_scale import MultiScaleQuantizer

SCALES = (1, 2, 3, 5)
VARIANTS = {
    "l2": {},
    "cosine": dict(metric="cosine"),
    "one phi": dict(phi_count=1),
    "a phi a scale": dict(phi_count=0),
    "no phi": dict(phi_ratio=0),
    "ema": dict(codebook="ema"),
    "oblong": dict(patch_nums=((1, 1), (2, 1), (5, 3))),
    "one scale": dict(patch_nums=(5,)),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return dict(dim=6, codebook_size=20, patch_nums=SCALES, channel_first=True) | VARIANTS[request.param]


def build(variant):
    quantizer = MultiScaleQuantizer(**variant)
    with torch.no_grad():
        quantizer.codebook.codes.normal_()
    return quantizer, torch.randn(4, 6, *quantizer.patch_nums[-1])


def algorithm_1(quantizer, x):
    """Indices, sums, and the loss with its gradients, in float64, by all distances and torch's own resizing."""
    codes, size, last = quantizer.codebook.codes, x.shape[2:], len(quantizer.patch_nums) - 1
    total, found, loss = torch.zeros_like(x), [], 0
    for scale, grid in enumerate(quantizer.patch_nums):
        rest = (x - total).detach()
        rest = rest if scale == last else interpolate(rest, size=grid, mode="area")
        rows = rest.movedim(1, -1).reshape(-1, x.shape[1])
        if quantizer.metric == "cosine":
            indices = (normalize(rows, dim=-1) @ normalize(codes.detach(), dim=-1).T).argmax(-1)
        else:
            indices = torch.cdist(rows, codes.detach()).argmin(-1)
        maps = codes[indices].view(len(x), *grid, -1).movedim(-1, 1)
        maps = maps if scale == last else interpolate(maps, size=size, mode="bicubic")
        if quantizer.phi is not None:
            phi = quantizer.phi[quantizer._phi_of_scale[scale]]
            maps = maps * (1 - phi.ratio) + torch.conv2d(maps, phi.weight, phi.bias, padding=1) * phi.ratio
        total = total + maps
        found.append(indices.view(len(x), -1))
        loss = loss + 0.25 * mse_loss(total.detach(), x) + mse_loss(total, x.detach())
    return torch.cat(found, 1), total, loss / len(found)


def test_is_the_published_algorithm(variant):
    quantizer, x = build(variant)
    if "codebook" in variant:
        quantizer.codebook.decay = 1
    reference, y = copy.deepcopy(quantizer).double(), x.double().requires_grad_()
    if "codebook" in variant:
        reference.codebook.codes = quantizer.codebook.codes.double()
    x.requires_grad_()
    indices, total, loss = algorithm_1(reference, y)
    result = quantizer(x)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss.double(), loss, rtol=1e-5, atol=1e-5)
    assert result.counts.sum() == indices.numel()
    loss.backward(), result.loss.backward()
    pairs = [(x, y), *zip(quantizer.parameters(), reference.parameters())]
    assert len(pairs) > 1 or quantizer.phi is None
    for ours, theirs in pairs:
        if theirs.grad is None:
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_gradient_of_quantized_is_the_identity(variant):
    quantizer, x = build(variant)
    weight = torch.randn_like(x)
    (quantizer(x.requires_grad_()).quantized * weight).sum().backward()
    assert torch.equal(x.grad, weight) and all(p.grad is None for p in quantizer.parameters())


def test_round_trips_have_the_bits_of_eval_mode(variant):
    quantizer, x = build(variant)
    result = quantizer.eval()(x)
    indices = quantizer.encode(x)
    assert torch.equal(indices, result.indices) and indices.shape == (4, *quantizer.selections)
    steps = quantizer.reconstructions(indices)
    assert torch.equal(quantizer.decode(indices), result.quantized) and torch.equal(steps[-1], result.quantized)
    end = 0
    for count, step in zip(quantizer.tokens, steps, strict=True):
        end += count
        assert torch.equal(quantizer.decode(indices[:, :end]), step)
    assert [part.shape[1:] for part in quantizer.split(indices)] == list(quantizer.patch_nums)
    assert torch.equal(torch.cat([part.flatten(1) for part in quantizer.split(indices)], 1), indices)


def test_inputs_of_the_next_scale(variant):
    quantizer, x = build(variant)
    indices = quantizer.encode(x)
    inputs = quantizer.next_inputs(indices)
    assert inputs.shape == (4, sum(quantizer.tokens[1:]), 6)
    expected = [
        interpolate(step.double(), size=size, mode="area").flatten(2).mT
        for step, size in zip(quantizer.reconstructions(indices), quantizer.patch_nums[1:])
    ]
    if expected:
        torch.testing.assert_close(inputs, torch.cat(expected, 1).float())
        shorter = indices[:, : -quantizer.tokens[-1]]
        assert torch.equal(quantizer.next_inputs(shorter), inputs), "the last scale is no input"
    total, generated = None, []
    for scale, part in enumerate(indices.split(quantizer.tokens, 1)):
        total, following = quantizer.advance(total, part, scale)
        generated += [] if following is None else [following]
    assert torch.equal(total, quantizer.decode(indices)) and len(generated) == len(quantizer.tokens) - 1
    assert not generated or torch.equal(torch.cat(generated, 1), inputs)


def test_channel_last_is_a_change_of_layout():
    first, x = build(dict(dim=6, codebook_size=20, patch_nums=SCALES, channel_first=True))
    last = copy.deepcopy(first)
    last.channel_first = False
    a, b = first(x), last(x.movedim(1, -1))
    assert torch.equal(a.quantized, b.quantized.movedim(-1, 1)) and torch.equal(a.indices, b.indices) and a.loss == b.loss
    assert torch.equal(last.decode(b.indices).movedim(-1, 1), first.decode(a.indices))


@pytest.mark.parametrize("codebook", ["learned", "ema"])
def test_a_picture_that_is_left_out_changes_nothing(codebook):
    quantizer, x = build(dict(dim=6, codebook_size=20, patch_nums=SCALES, channel_first=True, codebook=codebook))
    short = copy.deepcopy(quantizer)
    mask = torch.ones(4, 5, 5, dtype=torch.bool)
    mask[3, 2, 2] = False
    bad = x.clone()
    bad[1, 0, 0, 0] = torch.nan
    bad.requires_grad_(), x.requires_grad_()
    result, expected = quantizer(bad, mask), short(x[[0, 2]])
    for model, outcome in ((quantizer, result), (short, expected)):
        (outcome.loss + outcome.quantized.square().sum()).backward()
    assert (result.indices[[1, 3]] == -1).all() and not result.quantized[[1, 3]].any() and not bad.grad[[1, 3]].any()
    assert torch.equal(result.indices[[0, 2]], expected.indices) and torch.equal(result.counts, expected.counts)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(bad.grad[[0, 2]], x.grad[[0, 2]])
    torch.testing.assert_close(quantizer.codebook.codes, short.codebook.codes)
    for ours, theirs in zip(quantizer.parameters(), short.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(quantizer.encode(bad, mask)[[1, 3]], result.indices[[1, 3]])
    assert torch.equal(quantizer.decode(result.indices)[[1, 3]], torch.zeros(2, 6, 5, 5))
    empty = quantizer(bad, torch.zeros_like(mask))
    assert float(empty.loss.detach()) == 0 and not empty.quantized.any()


def test_learning_can_be_held():
    quantizer, x = build(dict(dim=6, codebook_size=20, patch_nums=SCALES, channel_first=True, codebook="ema"))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(x.requires_grad_(), learn=False).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), quantizer.state_dict().values()))
    assert x.grad.any() and all(p.grad is None for p in quantizer.parameters())
    quantizer(x)
    assert not torch.equal(quantizer.codes, before["codebook.codes"])


def test_a_learned_codebook_and_phi_learn_to_reconstruct():
    quantizer, x = build(dict(dim=6, codebook_size=64, patch_nums=SCALES, channel_first=True))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    errors = []
    for _ in range(60):
        result = quantizer(x)
        optimizer.zero_grad(), result.loss.backward(), optimizer.step()
        errors.append(float(mse_loss(result.quantized, x)))
    assert errors[-1] < 0.7 * errors[0]


def test_bfloat16_and_compile(variant):
    quantizer, x = build(variant)
    rows = x.bfloat16()
    half = copy.deepcopy(quantizer).bfloat16().eval()
    result = half(rows)
    assert result.quantized.dtype == torch.bfloat16
    assert torch.equal(half.decode(half.encode(rows), dtype=torch.bfloat16), result.quantized)
    assert not any(t.dtype == torch.bfloat16 for part in half.resize for t in part.buffers())
    torch._dynamo.reset()
    eager = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        a, b = eager(x), compiled(x)
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.loss, b.loss)
    assert torch.compile(quantizer.eval(), fullgraph=True, backend="aot_eager")(x).loss.isfinite()


def test_no_tokens_at_all():
    quantizer, x = build(dict(dim=6, codebook_size=20, patch_nums=SCALES, channel_first=True))
    result = quantizer(x[:0])
    assert result.indices.shape == (0, 39) and float(result.loss.detach()) == 0


def test_codebook_of_ones_own_and_health():
    book = EMACodebook(20, 6, decay=0.5)
    quantizer = MultiScaleQuantizer(6, 20, SCALES, codebook=book, channel_first=True)
    quantizer(torch.randn(4, 6, 5, 5))
    assert quantizer.codebook is book and quantizer.health().steps == 1 and 0 < quantizer.health().usage <= 1


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(patch_nums=()), ValueError, r"patch_nums.*\(\)"),
        (dict(patch_nums=(1, 0)), ValueError, "patch_nums"),
        (dict(metric="dot"), ValueError, "metric.*dot"),
        (dict(phi_ratio=1.5), ValueError, "phi_ratio.*1.5"),
        (dict(phi_count=-1), ValueError, "phi_count.*-1"),
        (dict(codebook="lfq"), ValueError, "codebook.*lfq"),
        (dict(codebook=3), TypeError, "codebook.*int"),
        (dict(codebook=EMACodebook(5, 6)), ValueError, "codebook: expected 20 codes of length 6, got 5"),
    ],
)
def test_constructor_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        MultiScaleQuantizer(**(dict(dim=6, codebook_size=20, patch_nums=SCALES) | change))


def test_call_errors_name_the_argument():
    quantizer = MultiScaleQuantizer(6, 20, SCALES)
    for x in (torch.randn(2, 4, 5, 6), torch.randn(5, 5, 6)):
        with pytest.raises(ValueError, match=r"x: expected \(B, 5, 5, 6\)"):
            quantizer(x)
    with pytest.raises(ValueError, match="mask"):
        quantizer(torch.randn(2, 5, 5, 6), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"indices: .*\[1, 5, 14, 39\].*\(2, 7\)"):
        quantizer.decode(torch.zeros(2, 7, dtype=torch.int64))
    with pytest.raises(IndexError, match="indices: .*20"):
        quantizer.decode(torch.full((2, 5), 20))
    with pytest.raises(ValueError, match=r"indices: .*\(B, 4\) at scale 1"):
        quantizer.advance(None, torch.zeros(2, 3, dtype=torch.int64), 1)
