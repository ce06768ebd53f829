import pytest

from vqkit.kernels import tile

DEVICES = (tile.INTERPRETER, (8, 0), (9, 0), (10, 0), (12, 0))
SIZES = (1, 3, 16, 65, 4096)


@pytest.mark.parametrize("device", DEVICES)
def test_every_size_is_a_power_of_two_that_a_dot_can_take(device):
    for parts in (1, 2):
        for k in SIZES:
            for d in SIZES:
                for keep in (2, 9):
                    search = tile.search(100, k, d, parts, device, keep)
                    assert min(search[:3]) >= 16
                    # A tile is whole groups, in as many blocks as it takes.
                    assert search.codes % (search.group * search.slots) == 0 and search.slots & (search.slots - 1) == 0
                    for sizes in (search, tile.exhaustive(k, d, device), tile.rows(d, device), tile.segments(d, device), tile.sample(d, device)):
                        assert all(size & (size - 1) == 0 and size > 0 for size in sizes[:4])


@pytest.mark.parametrize("device", DEVICES)
def test_another_number_of_rows_rarely_compiles_another_kernel(device):
    counts = range(1, 2_000_000, 4999)
    assert len({tile.search(n, 1024, 64, 1, device, 2) for n in counts}) <= 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_a_merge_has_room_for_a_list_of_every_part(device, lanes):
    assert tile.merge(lanes, device).columns >= tile.parts(10**9, 10**9) * lanes


@pytest.mark.parametrize("tiles", [1, 3, 4, 64, 8192, 10**6])
@pytest.mark.parametrize("wanted", [0, 1, 2, 7, 264])
def test_parts_are_not_more_than_wanted_and_not_too_small(wanted, tiles):
    parts = tile.parts(wanted, tiles)
    assert parts == 1 or (parts <= wanted and tiles / parts >= 4)
    # Nothing but these limits makes it fewer.
    assert parts == max(wanted, 1) or parts == tile.MOST_PARTS or tiles / (parts + 1) < 4
