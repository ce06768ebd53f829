"""Gather, gradients, statistics and aggregation of the compiled module against float64, and their determinism."""

import pytest
import torch
from torch.autograd import grad

from vqkit import native

pytestmark = pytest.mark.skipif(native._native is None, reason="the native module is not built")

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(0, 3, 4, 1), (1, 1, 1, 1), (7, 2, 3, 1), (129, 33, 65, 1), (500, 5, 130, 1), (129, 33, 8, 2), (40, 9, 70, 3)]


def make(n, k, d, t, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n + k + d + t)
    latents = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    codes = torch.randn(k, d, generator=generator, dtype=torch.float64).to(dtype)
    indices = torch.randint(0, k, (n, t), generator=generator)
    indices[torch.rand(n, generator=generator) < 0.2, 0] = -1
    return latents, codes, indices


def reference(latents, codes, indices):
    """quantized and error by plain indexing, in the dtype given."""
    keep = indices[:, :1] >= 0
    quantized = torch.where(keep, codes[indices.clamp(min=0)].mean(1), 0.0)
    elements = int(keep.sum()) * latents.shape[1]
    squares = torch.where(keep, latents - quantized, 0.0).square().sum()
    return quantized, squares / max(elements, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_straight_through(shape, dtype):
    latents, codes, indices = make(*shape, dtype)
    quantized, error = native.straight_through(latents, codes, indices)
    wide, wide_error = reference(latents.double(), codes.double(), indices)
    assert quantized.dtype == dtype and error.shape == ()
    assert error.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(quantized.double(), wide, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert torch.allclose(error.double(), wide_error, rtol=1e-6, atol=0)
    if shape[3] == 1:
        assert torch.equal(quantized, torch.where(indices >= 0, codes[indices[:, 0].clamp(min=0)], 0.0))


def rotation(x, q):
    """R of the rotation trick, by its definition, for one row."""
    e, unit = x / x.norm(), q / q.norm()
    w = (e + unit) / (e + unit).norm()
    eye = torch.eye(len(x), dtype=x.dtype)
    return q.norm() / x.norm() * (eye - 2 * torch.outer(w, w) + 2 * torch.outer(unit, e))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotate", [False, True], ids=["straight_through", "rotation"])
def test_backward(shape, dtype, rotate):
    latents, codes, indices = make(*shape, dtype)
    upstream = make(*shape)[0].flip(0).to(dtype)
    commitment, codebook = 0.7, 1.3
    upstreams = upstream, torch.tensor(commitment, dtype=torch.float64), torch.tensor(codebook, dtype=torch.float64)
    got_latents, got_codes = native.straight_through_backward(latents, codes, indices, *upstreams, rotate, True)
    x, c = latents.double().requires_grad_(), codes.double().requires_grad_()
    quantized, _ = reference(x, c, indices)
    keep = indices[:, :1] >= 0
    elements = max(int(keep.sum()) * x.shape[1], 1)
    loss = commitment * torch.where(keep, x - quantized.detach(), 0.0).square().sum() / elements
    loss = loss + codebook * torch.where(keep, x.detach() - quantized, 0.0).square().sum() / elements
    want_latents, want_codes = grad(loss, (x, c))
    through = upstream.double().clone()
    if rotate:
        for n in range(len(x)):
            if keep[n]:
                through[n] = rotation(x[n].detach(), quantized[n].detach()).T @ through[n]
    want_latents = want_latents + torch.where(keep, through, 0.0)
    tolerance = DTYPES[dtype]
    assert got_latents.dtype == dtype and got_codes.dtype == dtype
    assert torch.allclose(got_latents.double(), want_latents, rtol=tolerance * 4, atol=tolerance * 4)
    assert torch.allclose(got_codes.double(), want_codes, rtol=tolerance, atol=tolerance)


def test_rotation_falls_back_row_by_row():
    latents = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, 1.0]])
    codes = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-2.0, -4.0]])
    indices = torch.tensor([[0], [1], [2], [0]])
    upstream = torch.tensor([[1.0, -1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    got, _ = native.straight_through_backward(latents, codes, indices, upstream, torch.tensor(0.0), torch.tensor(0.0), True, True)
    assert torch.equal(got[:3], upstream[:3])
    # a rotation keeps angles: R maps the latent to its code
    assert torch.allclose(rotation(latents[3], codes[0]) @ latents[3], codes[0])
    assert torch.allclose(got[3], rotation(latents[3], codes[0]).T @ upstream[3])


def test_all_rows_masked():
    latents, codes, indices = make(20, 4, 6, 2, torch.float32)
    indices[:] = -1
    quantized, error = native.straight_through(latents, codes, indices)
    assert not quantized.any() and error == 0
    for gradient in native.straight_through_backward(latents, codes, indices, latents, torch.tensor(1.0), torch.tensor(1.0), False, True):
        assert not gradient.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_code_statistics(shape, dtype):
    latents, codes, indices = make(*shape, dtype)
    index, size = indices[:, 0].contiguous(), len(codes)
    sums, counts = native.code_statistics(latents, index, size)
    keep = index >= 0
    want = torch.zeros(size, latents.shape[1], dtype=torch.float64).index_add_(0, index[keep], latents[keep].double())
    assert torch.equal(counts, torch.bincount(index[keep], minlength=size))
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(sums.double(), want, rtol=1e-6, atol=1e-12)
    assert int(counts.sum()) == int(keep.sum())


@pytest.mark.parametrize("width", [0, 1, 31, 32, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_aggregate(width, dtype):
    generator = torch.Generator().manual_seed(width)
    nodes, edges = 90, 700
    # a few hubs and some nodes without any edge
    source = (torch.rand(edges, generator=generator) ** 4 * nodes).long().sort().values
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(source, minlength=nodes).cumsum(0)])
    neighbours = torch.randint(0, nodes, (edges,), generator=generator)
    weights = torch.rand(edges, generator=generator)
    features = torch.randn(nodes, width, generator=generator, dtype=torch.float64).to(dtype)
    dense = torch.zeros(nodes, nodes, dtype=torch.float64).index_put_((source, neighbours), weights.double(), accumulate=True)
    out = native.aggregate(offsets, neighbours, weights, features)
    assert out.dtype == dtype
    tolerance = max(DTYPES[dtype], 1e-6)
    assert torch.allclose(out.double(), dense @ features.double(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("crowded", [False, True], ids=["spread", "one code"])
def test_threads_do_not_change_bits(crowded):
    latents, codes, indices = make(3000, 50, 70, 2, torch.float32)
    if crowded:
        indices = torch.where(indices >= 0, 3, indices)
    offsets, neighbours = torch.arange(0, 3001, 60), torch.randint(0, 50, (3000,))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([
                *native.straight_through(latents, codes, indices),
                *native.straight_through_backward(latents, codes, indices, latents, torch.tensor(0.3), torch.tensor(0.9), True, True),
                *native.code_statistics(latents, indices[:, 0].contiguous(), 50),
                native.aggregate(offsets, neighbours, latents[:, 0].contiguous(), codes),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(result, results[0], strict=True))


def test_indices_out_of_range_touch_no_memory():
    latents, codes, indices = make(20, 4, 6, 1, torch.float32)
    for bad in (4, -2, 2**40):
        indices[11, 0] = bad
        with pytest.raises(IndexError, match=rf"indices: .* got {bad} in row 11"):
            native.straight_through(latents, codes, indices)
        with pytest.raises(IndexError, match="indices"):
            native.straight_through_backward(latents, codes, indices, latents, torch.tensor(1.0), torch.tensor(1.0), False, True)
        with pytest.raises(IndexError, match="indices"):
            native.code_statistics(latents, indices[:, 0].contiguous(), 4)
    with pytest.raises(IndexError, match="neighbours: .* got 9"):
        native.aggregate(torch.tensor([0, 1]), torch.tensor([9]), torch.ones(1), torch.ones(3, 2))
    with pytest.raises(IndexError, match="offsets"):
        native.aggregate(torch.tensor([0, 2]), torch.tensor([1]), torch.ones(1), torch.ones(3, 2))


def test_arguments_that_do_not_fit_touch_no_memory():
    latents, codes, indices = make(20, 4, 6, 1, torch.float32)
    one, row = torch.tensor(1.0), torch.tensor([0, 1])
    calls = [
        (ValueError, r"codes: expected shape \(any, 6\)", lambda: native.straight_through(latents, codes[:, :5].contiguous(), indices)),
        (ValueError, r"indices: expected shape \(20, any\)", lambda: native.straight_through(latents, codes, indices[:1])),
        (ValueError, "indices: .*dimension of 0", lambda: native.straight_through(latents, codes, indices[:, :0].contiguous())),
        (TypeError, "indices: .*int32", lambda: native.straight_through(latents, codes, indices.int())),
        (ValueError, "grad_quantized", lambda: native.straight_through_backward(latents, codes, indices, latents[:1], one, one, False, True)),
        (ValueError, "indices", lambda: native.code_statistics(latents, indices[:3, 0].contiguous(), 4)),
        (TypeError, "indices: .*int32", lambda: native.code_statistics(latents, indices[:, 0].int(), 4)),
        (TypeError, "offsets: .*float32", lambda: native.aggregate(torch.ones(2), row[:1], torch.ones(1), codes)),
        (TypeError, "neighbours: .*int32", lambda: native.aggregate(row, row[:1].int(), torch.ones(1), codes)),
        (ValueError, r"weights: expected shape \(1\)", lambda: native.aggregate(row, row[:1], torch.ones(3), codes)),
        (ValueError, "features", lambda: native.aggregate(row, row[:1], torch.ones(1), codes[0])),
    ]  # fmt: skip
    for error, words, call in calls:
        with pytest.raises(error, match=words):
            call()
