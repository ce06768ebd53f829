"""Sums and counts of every backend against float64, in a fixed order, without losing or inventing a row."""

import pytest
import torch

from vqkit.ops import code_counts, code_statistics, ema_update

SHAPES = [(0, 3, 4), (1, 1, 1), (9, 5, 3), (700, 33, 17), (1030, 3, 64), (257, 1, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_against_float64(backend, device, dtype, shape, masked):
    n, size, dim = shape
    latents = torch.randn(n, dim).to(dtype)
    # Skewed as real code use is: most rows choose few codes.
    indices = (torch.rand(n) ** 3 * size).long()
    if masked:
        indices[torch.rand(n) < 0.3] = -1
    sums, counts = code_statistics(latents.to(device), indices.to(device), size, backend=backend)
    kept = indices >= 0
    expected = torch.zeros(size, dim, dtype=torch.float64).index_add_(0, indices[kept], latents[kept].double())
    assert torch.equal(counts.cpu(), torch.bincount(indices[kept], minlength=size))
    assert sums.dtype == torch.promote_types(dtype, torch.float32) and counts.dtype == torch.int64
    torch.testing.assert_close(sums.cpu().double(), expected, rtol=1e-5, atol=1e-4 if dtype != torch.float64 else 1e-10)
    assert not sums[counts == 0].any()


def test_one_code_for_all_rows(backend, device):
    latents = torch.rand(5000, 3, device=device)
    sums, counts = code_statistics(latents, torch.full((5000,), 7, device=device), 9, backend=backend)
    assert counts.tolist() == [0] * 7 + [5000, 0]
    torch.testing.assert_close(sums[7].double(), latents.double().sum(0), rtol=1e-6, atol=0)


def test_two_runs_give_the_same_bits(backend, device):
    latents, indices = torch.randn(3000, 11, device=device), torch.randint(13, (3000,), device=device)
    first, second = (code_statistics(latents, indices, 13, backend=backend)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_leading_dimensions(backend, device):
    latents, indices = torch.randn(4, 5, 6, device=device), torch.randint(3, (4, 5), device=device)
    flat = code_statistics(latents.reshape(20, 6), indices.reshape(20), 3, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(code_statistics(latents, indices, 3, backend=backend), flat))


def test_registration(backend, device):
    arguments = (torch.randn(9, 4, device=device), torch.randint(5, (9,), device=device), 5, backend)
    torch.library.opcheck(torch.ops.vqkit.code_statistics, arguments)


def test_counts_leave_masked_rows_out():
    assert code_counts(torch.tensor([[0, 2], [-1, 2]]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "indices, size, error, words",
    [
        (torch.tensor([0, 5]), 2, IndexError, "codebook_size = 2.*0..5"),
        (torch.tensor([-2, 1]), 2, IndexError, "codebook_size = 2.*-2..1"),
        (torch.tensor([0, 1], dtype=torch.int32), 2, TypeError, "indices.*int32"),
        ([0, 1], 2, TypeError, "indices.*list"),
        (torch.tensor([0, 1]), 2.0, TypeError, "codebook_size.*2.0"),
        (torch.tensor([0, 1]), 0, ValueError, "codebook_size.*0"),
    ],
)
def test_errors_of_counts_name_the_argument(indices, size, error, words):
    with pytest.raises(error, match=words):
        code_counts(indices, size)


def test_counts_compile_without_a_graph_break():
    indices = torch.randint(-1, 5, (30,))
    compiled = torch.compile(lambda i: code_counts(i, 5) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(indices), code_counts(indices, 5) * 2)


def test_ema_update():
    average = torch.tensor([1.0, 2.0])
    ema_update(average, torch.tensor([3, 4]), 0.75)
    assert average.tolist() == [1.5, 2.5]


def test_errors_name_the_argument():
    latents, indices = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(IndexError, match="codebook_size = 2.*0..5"):
        code_statistics(latents, torch.tensor([0, 5, 1]), 2)
    with pytest.raises(ValueError, match="codebook_size.*0"):
        code_statistics(latents, indices, 0)
    with pytest.raises(TypeError, match="codebook_size.*2.0"):
        code_statistics(latents, indices, 2.0)
    with pytest.raises(ValueError, match="indices"):
        code_statistics(latents, indices[:2], 2)
    with pytest.raises(TypeError, match="indices.*int32"):
        code_statistics(latents, indices.int(), 2)
