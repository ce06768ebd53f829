"""One table of codes for each head: every backend gives each head what it gets alone, and float64 agrees."""

import pytest
import torch

from vqkit.ops import code_statistics, nearest_code, nearest_codes

# Heads, rows, codes, dimensions.
SHAPES = [(1, 9, 5, 3), (2, 0, 4, 7), (3, 1, 1, 1), (3, 33, 17, 5), (5, 130, 65, 8), (2, 70, 257, 19)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make(shape, dtype, device):
    heads, n, size, dim = shape
    return torch.randn(heads, n, dim).to(device, dtype), torch.randn(heads, size, dim).to(device, dtype)


def scores(latents, codes, metric):
    x, c = latents.double(), codes.double()
    if metric == "l2":
        return -(x[:, :, None] - c[:, None]).square().sum(-1)
    return (x[:, :, None] * c[:, None]).sum(-1) / (c.norm(dim=-1)[:, None] * x.norm(dim=-1)[..., None])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_search_by_a_float64_score(backend, device, metric, dtype, shape):
    latents, codes = make(shape, dtype, device)
    k = min(3, shape[2])
    distances, indices = nearest_codes(latents, codes, k, metric=metric, backend=backend)
    assert distances.shape == indices.shape == (*shape[:2], k)
    assert distances.dtype == torch.promote_types(dtype, torch.float32) and indices.dtype == torch.int64
    truth = scores(latents, codes, metric)
    chosen, best = truth.gather(2, indices), truth.topk(k).values
    assert (best - chosen <= 1e-13 * (1 + best.abs())).all()
    expected = -chosen if metric == "l2" else 1 - chosen
    torch.testing.assert_close(distances.double(), expected, rtol=2e-5, atol=2e-5 if dtype != torch.float64 else 1e-12)
    for head in range(shape[0]):
        alone = nearest_codes(latents[head], codes[head], k, metric=metric, backend=backend)
        assert torch.equal(distances[head], alone[0]) and torch.equal(indices[head], alone[1])


def test_layouts_and_more_dimensions(backend, device):
    latents = torch.randn(4, 3, 6, 5, device=device).permute(1, 0, 3, 2)
    codes = torch.randn(6, 3, 11, device=device).permute(1, 2, 0)
    indices = nearest_code(latents, codes, backend=backend)
    assert indices.shape == (3, 4, 5)
    flat = nearest_code(latents.reshape(3, 20, 6).contiguous(), codes.contiguous(), backend=backend)
    assert torch.equal(indices.reshape(3, 20), flat)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(backend, device, dtype, shape):
    heads, n, size, dim = shape
    latents = torch.randn(heads, n, dim).to(device, dtype)
    indices = torch.randint(-1, size, (heads, n), device=device)
    sums, counts = code_statistics(latents, indices, size, per_head=True, backend=backend)
    assert sums.shape == (heads, size, dim) and counts.shape == (heads, size)
    for head in range(heads):
        alone = code_statistics(latents[head], indices[head], size, backend=backend)
        assert torch.equal(counts[head], alone[1])
        torch.testing.assert_close(sums[head], alone[0], rtol=1e-5, atol=1e-5 if dtype != torch.float64 else 1e-12)
        kept = indices[head] >= 0
        truth = torch.zeros(size, dim, dtype=torch.float64, device=device).index_add_(0, indices[head][kept], latents[head][kept].double())
        torch.testing.assert_close(sums[head].double(), truth, rtol=1e-5, atol=1e-4 if dtype != torch.float64 else 1e-10)
    assert not sums[counts == 0].any() and int(counts.sum()) == int((indices >= 0).sum())


def test_an_index_of_the_next_head_is_an_error():
    with pytest.raises(IndexError, match="indices: .*codebook_size = 4, got 0..4"):
        code_statistics(torch.zeros(2, 2, 3), torch.tensor([[0, 4], [1, 1]]), 4, per_head=True)


def test_threads_do_not_change_bits():
    latents, codes = make((6, 300, 400, 16), torch.float32, "cpu")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            distances, indices = nearest_codes(latents, codes, 2)
            results.append((distances, indices, *code_statistics(latents, indices[..., 0], 400, per_head=True)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(result, results[0], strict=True))


def test_registration(backend, device):
    latents, codes = make((3, 9, 7, 4), torch.float32, device)
    torch.library.opcheck(torch.ops.vqkit.nearest_codes, (latents, codes, 2, False, True, backend))
    indices = torch.randint(-1, 7, (3, 9), device=device)
    torch.library.opcheck(torch.ops.vqkit.code_statistics, (latents, indices, 7, backend))


def test_compiles_without_a_graph_break(backend, device):
    def step(latents, codes):
        indices = nearest_code(latents, codes, backend=backend)
        sums, counts = code_statistics(latents, indices, codes.shape[1], per_head=True, backend=backend)
        return sums / counts.clamp(min=1)[..., None]

    latents, codes = make((2, 40, 12, 6), torch.float32, device)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(latents, codes), step(latents, codes))
