import pytest
import torch

from vqkit.kernels import probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := probe.unavailable(torch.zeros(1, device=DEVICE)):
    pytest.skip(reason, allow_module_level=True)

from vqkit.kernels import segments, statistics  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
pytestmark = pytest.mark.usefixtures("poisoned")


def reference(latents, indices, codebook_size):
    keep = indices >= 0
    sums = torch.zeros(codebook_size, latents.shape[1], dtype=torch.float64, device=latents.device)
    return sums.index_add_(0, indices[keep], latents[keep].double()), torch.bincount(indices[keep], minlength=codebook_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, size, d", [(0, 3, 5), (1, 1, 1), (300, 150, 3), (1000, 7, 65), (40, 3, 300)])
def test_sums_and_counts(n, size, d, dtype):
    latents = torch.randn(n, d, device=DEVICE).to(dtype)
    indices = torch.randint(-1, size, (n,), device=DEVICE)
    sums, counts = statistics.code_statistics(latents, indices, size)
    expected, expected_counts = reference(latents, indices, size)
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(counts, expected_counts) and counts.dtype == torch.int64


def test_a_code_that_holds_nearly_all_rows():
    n, size = 6 * segments.PIECE + 11, 9
    latents = torch.randn(n, 5, device=DEVICE)
    indices = torch.full((n,), 4, device=DEVICE)
    indices[::100], indices[7::300] = 8, -1
    sums, counts = statistics.code_statistics(latents, indices, size)
    expected, expected_counts = reference(latents, indices, size)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(counts, expected_counts)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lists_as_long_as_a_piece(extra):
    indices = torch.arange(3, device=DEVICE).repeat_interleave(segments.PIECE + extra)
    latents = torch.ones(len(indices), 2, device=DEVICE)
    sums, counts = statistics.code_statistics(latents, indices, 3)
    assert torch.equal(sums, counts[:, None].expand(3, 2).float())


def test_all_rows_masked():
    sums, counts = statistics.code_statistics(torch.randn(20, 3, device=DEVICE), torch.full((20,), -1, device=DEVICE), 4)
    assert not sums.any() and not counts.any()


def test_half_precision_accumulates_in_float32():
    latents = torch.ones(5000, 1, dtype=torch.float16, device=DEVICE)
    sums, _ = statistics.code_statistics(latents, torch.zeros(5000, dtype=torch.int64, device=DEVICE), 1)
    assert sums.item() == 5000


def test_two_runs_give_the_same_bits():
    latents, indices = torch.randn(1000, 17, device=DEVICE), torch.randint(0, 3, (1000,), device=DEVICE)
    first, second = (statistics.code_statistics(latents, indices, 3)[0] for _ in range(2))
    assert torch.equal(first, second)
