import pytest
import torch

from vqkit.kernels import tile

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICES = (tile.INTERPRETER, (8, 0), (9, 0), (10, 0))
SIZES = (1, 3, 16, 65, 4096)


@pytest.mark.parametrize("device", DEVICES)
def test_every_size_is_a_power_of_two_that_a_dot_can_take(device):
    for dtype in DTYPES:
        for k in SIZES:
            for d in SIZES:
                for keep in (2, 9):
                    search = tile.search(100, k, d, dtype, device, keep)
                    assert min(search[:3]) >= 16
                    for sizes in (search, tile.exhaustive(k, d, device), tile.rows(d, device), tile.segments(d, device)):
                        assert all(size & (size - 1) == 0 and size > 0 for size in sizes[:4])


@pytest.mark.parametrize("device", DEVICES)
def test_another_number_of_rows_rarely_compiles_another_kernel(device):
    counts = range(1, 2_000_000, 4999)
    assert len({tile.search(n, 1024, 64, torch.bfloat16, device, 2) for n in counts}) <= 2
