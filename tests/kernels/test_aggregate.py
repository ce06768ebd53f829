import pytest
import torch

from vqkit.kernels import probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := probe.unavailable(torch.zeros(1, device=DEVICE)):
    pytest.skip(reason, allow_module_level=True)

from vqkit.kernels import aggregate, segments  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}


def graph(lengths):
    """A graph in compressed rows with the given number of neighbours a node."""
    lengths = torch.as_tensor(lengths, device=DEVICE)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    edges = int(offsets[-1])
    return offsets, torch.randint(0, len(lengths), (edges,), device=DEVICE), torch.rand(edges, device=DEVICE) / 8


def reference(offsets, neighbours, weights, features):
    owners = torch.arange(len(offsets) - 1, device=DEVICE).repeat_interleave(offsets.diff())
    result = torch.zeros(len(offsets) - 1, features.shape[1], dtype=torch.float64, device=DEVICE)
    return result.index_add_(0, owners, weights.double()[:, None] * features.double()[neighbours])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("lengths, width", [([0, 0], 3), ([1], 1), ([3, 0, 5, 1, 17], 7), ([2] * 150, 65)])
def test_weighted_sums_of_neighbours(lengths, width, dtype):
    rows = graph(lengths)
    features = torch.randn(len(lengths), width, device=DEVICE).to(dtype)
    result = aggregate.aggregate(*rows, features)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), reference(*rows, features), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_hubs_are_split_and_added_in_order():
    rows = graph([3, 3 * segments.PIECE + 5, 0, segments.PIECE, segments.PIECE + 1] + [2] * 20)
    features = torch.randn(25, 9, device=DEVICE)
    result = aggregate.aggregate(*rows, features)
    torch.testing.assert_close(result.double(), reference(*rows, features), rtol=1e-5, atol=1e-4)
    assert torch.equal(result, aggregate.aggregate(*rows, features))


def test_no_nodes():
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    result = aggregate.aggregate(empty.new_zeros(1), empty, empty.float(), torch.zeros(0, 4, device=DEVICE))
    assert result.shape == (0, 4)


def test_graphs_that_nobody_checked_read_nothing_outside():
    surrounded = torch.full((12, 3), float("nan"), device=DEVICE)
    surrounded[4:8] = 1.0
    for offsets in ([0, 2, 9, 900, 4], [-7, 2, 1, 3, 4], [3, 0, 0, 0, 0]):
        neighbours = torch.tensor([-1, 4, 3, 2**40], device=DEVICE)
        result = aggregate.aggregate(torch.tensor(offsets, device=DEVICE), neighbours, torch.ones(4, device=DEVICE), surrounded[4:8])
        assert result.isfinite().all()
