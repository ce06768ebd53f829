"""Tensors of more than 2^31 elements: the far end is found, and read.

They are zero but for a few rows, so that the system never backs most of their pages with memory.
"""

import mmap

import pytest
import torch

from vqkit import native

pytestmark = [pytest.mark.slow, pytest.mark.skipif(native._native is None, reason="the native module is not built")]

# Rows and dimensions: few long rows, and many short ones.
SHAPES = [(2049, 2**20), (2**25 + 5, 64)]


def zeros(rows: int, dims: int) -> torch.Tensor:
    """Zeros that nobody wrote: torch.zeros would write them, and take 8 GiB."""
    assert rows * dims > 2**31
    try:
        pages = mmap.mmap(-1, rows * dims * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        pytest.skip(f"the system maps no {rows * dims * 4 / 2**30:.0f} GiB of zeros: {error}")
    return torch.frombuffer(pages, dtype=torch.float32).view(rows, dims)


@pytest.mark.parametrize(("rows", "dims"), SHAPES)
def test_the_last_latent_is_searched(rows, dims):
    latents = zeros(rows, dims)
    codes = torch.zeros(2, dims)
    latents[-1, -3:] = codes[1, -3:] = torch.tensor([1.0, -2.0, 3.0])
    distances, indices = native.nearest_codes(latents, codes, 1, False, True)
    assert indices[-1].item() == 1 and distances[-1].item() == 0
    assert not indices[:-1].any() and not distances[:-1].any()


@pytest.mark.parametrize(("rows", "dims"), SHAPES)
def test_the_last_code_is_found(rows, dims):
    codes = zeros(rows, dims)
    latents = torch.zeros(1, dims)
    codes[-1, -3:] = latents[0, -3:] = torch.tensor([1.0, -2.0, 3.0])
    distances, indices = native.nearest_codes(latents, codes, 2, False, True)
    # All others are equal: the first comes second.
    assert indices.tolist() == [[rows - 1, 0]] and distances.tolist() == [[0.0, 14.0]]


@pytest.mark.parametrize(("rows", "dims"), SHAPES)
def test_the_last_latent_is_summed(rows, dims):
    latents = zeros(rows, dims)
    latents[-2, 0], latents[-1, -3:] = 5.0, torch.tensor([1.0, -2.0, 3.0])
    indices = torch.zeros(rows, dtype=torch.int64)
    indices[-1] = 2
    sums, counts = native.code_statistics(latents, indices, 3)
    assert counts.tolist() == [rows - 1, 0, 1]
    assert torch.equal(sums[2], latents[-1]) and not sums[1].any()
    assert sums[0, 0].item() == 5.0 and not sums[0, 1:].any()


@pytest.mark.parametrize(("rows", "dims"), SHAPES)
def test_the_last_code_is_quantized_to(rows, dims):
    """Straight-through reads K D > 2^31 codes; N D > 2^31 latents would be as many elements written, 8 GiB of memory."""
    codes = zeros(rows, dims)
    codes[0], codes[-1] = 1.0, 2.0
    latents = torch.full((3, dims), 0.5)
    quantized, error = native.straight_through(latents, codes, torch.tensor([[rows - 1], [0], [rows - 2]]))
    assert torch.equal(quantized, torch.tensor([[2.0], [1.0], [0.0]]).expand(3, dims))
    assert error.item() == pytest.approx((1.5**2 + 0.5**2 + 0.5**2) / 3, rel=1e-6)


@pytest.mark.parametrize(("rows", "dims"), SHAPES)
def test_the_last_neighbour_is_aggregated(rows, dims):
    features = zeros(rows, dims)
    features[-1], features[-2] = 3.0, 1.0
    out = native.aggregate(torch.tensor([0, 2, 2]), torch.tensor([rows - 1, rows - 2]), torch.tensor([2.0, -1.0]), features)
    assert torch.equal(out, torch.tensor([[5.0], [0.0]]).expand(2, dims))
