"""A CUDA device goes to the far end of tensors of more than 2^31 elements.

What can be known without one, test_ahead_of_time.py proves: the widths of the products that make an address.
"""

import pytest
import torch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 9 GiB of a CUDA device")
def test_the_far_end_on_a_device():
    check_far_end(2**25 + 5, "cuda")


def check_far_end(rows: int, device: str) -> None:
    """``rows`` of 64 elements, all alike but the last, as latents and as codes."""
    from vqkit.kernels import nearest, statistics, straight_through

    many, two = torch.zeros(rows, 64, dtype=torch.bfloat16, device=device), torch.zeros(2, 64, dtype=torch.bfloat16, device=device)
    many[-1], two[1] = 1.0, 1.0
    distances, indices = nearest.nearest_codes(many, two, 1, False, True)
    assert indices[-1].item() == 1 and not indices[:-1].any() and not distances.any()
    sums, counts = statistics.code_statistics(many, indices[:, 0], 2)
    assert counts.tolist() == [rows - 1, 1] and torch.equal(sums, two.float())
    quantized, error = straight_through.straight_through(many, two, indices)
    assert torch.equal(quantized[-1], two[1]) and not quantized[:-1].any() and error.item() == 0
    del quantized
    # The last code is the only one that a row of ones can be at no distance from.
    distances, indices = nearest.nearest_codes(two, many, 1, False, True)
    assert indices.tolist() == [[0], [rows - 1]] and not distances.any()
    assert torch.equal(straight_through.straight_through(two, many, indices)[0], two)
