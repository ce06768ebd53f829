"""Every backend finds the float64-nearest latent of every code, and none that is masked or not finite."""

import pytest
import torch

from vqkit.backend import BackendError
from vqkit.ops import nearest_code, nearest_row

SHAPES = [(1, 1, 1), (7, 1, 3), (1, 9, 4), (65, 3, 8), (257, 64, 37), (700, 20, 5)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def true_distances(latents, codes, metric="l2"):
    """(N, K) in float64: squared Euclidean, or 1 - cosine with zero vectors at similarity 0; infinite for rows that are not finite."""
    x, c = latents.double().cpu(), codes.double().cpu()
    if metric == "cosine":
        norms = x.norm(dim=1)[:, None] * c.norm(dim=1)
        distances = 1 - x @ c.T / norms.where(norms > 0, 1.0)
    else:
        distances = (x[:, None] - c).square().sum(-1)
    return distances.masked_fill(~x.isfinite().all(-1, keepdim=True), torch.inf)


def assert_nearest(chosen, latents, codes, mask=None, metric="l2"):
    """The chosen row is one of the nearest; it is the lowest of those that float64 cannot tell apart."""
    truth = true_distances(latents, codes, metric)
    if mask is not None:
        truth = truth.masked_fill(~mask.cpu()[:, None], torch.inf)
    assert chosen.shape == (len(codes),) and chosen.dtype == torch.int64
    best, order = truth.sort(dim=0, stable=True)
    scale = 1 + truth[truth.isfinite()].abs().max()
    assert (truth.gather(0, chosen.cpu()[None])[0] - best[0] <= 1e-13 * scale).all()
    clear = best[1] - best[0] > 1e-12 * scale if len(truth) > 1 else torch.ones(len(codes), dtype=torch.bool)
    assert torch.equal(chosen.cpu()[clear], order[0][clear])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("masked", [False, True])
def test_nearest_by_a_float64_score(backend, device, dtype, shape, metric, masked):
    n, size, dim = shape
    latents, codes = torch.randn(n, dim).to(device, dtype), torch.randn(size, dim).to(device, dtype)
    mask = torch.rand(n, device=device) < 0.6 if masked else None
    if masked:
        mask[n // 2] = True
    assert_nearest(nearest_row(latents, codes, mask=mask, metric=metric, backend=backend), latents, codes, mask, metric)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_offset_a_thousand_times_the_spread(backend, device, dtype, metric):
    latents, codes = torch.randn(400, 24, dtype=dtype) + 1000, torch.randn(70, 24, dtype=dtype) + 1000
    latents, codes, mask = latents.to(device), codes.to(device), torch.rand(400, device=device) < 0.5
    for chosen_mask in (None, mask):
        assert_nearest(nearest_row(latents, codes, mask=chosen_mask, metric=metric, backend=backend), latents, codes, chosen_mask, metric)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_equal_rows_go_to_the_lowest_that_is_left(backend, device, dtype, metric):
    latents = torch.randn(50, 6).to(device, dtype).repeat(3, 1)
    codes = torch.randn(40, 6).to(device, dtype)
    first = nearest_row(latents, codes, metric=metric, backend=backend)
    assert (first < 50).all()
    mask = torch.ones(150, dtype=torch.bool, device=device)
    mask[:50] = False
    assert torch.equal(nearest_row(latents, codes, mask=mask, metric=metric, backend=backend), first + 50)


def test_every_code_that_is_a_latent_finds_itself(backend, device):
    latents = torch.randn(300, 12, device=device)
    chosen = torch.randperm(300, device=device)[:90]
    assert torch.equal(nearest_row(latents, latents[chosen], backend=backend), chosen)


def test_another_order_of_the_rows_gives_the_same_rows(backend, device):
    latents, codes, order = torch.randn(333, 9, device=device), torch.randn(50, 9, device=device), torch.randperm(333, device=device)
    assert torch.equal(order[nearest_row(latents[order], codes, backend=backend)], nearest_row(latents, codes, backend=backend))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_rows_that_are_not_finite_are_never_chosen(backend, device, metric):
    codes = torch.randn(30, 5, device=device)
    latents = codes.repeat(2, 1)
    latents[3, 1], latents[7, 4], latents[9, 0] = torch.nan, torch.inf, -torch.inf
    chosen = nearest_row(latents, codes, metric=metric, backend=backend)
    expected = torch.arange(30, device=device)
    expected[[3, 7, 9]] += 30
    assert torch.equal(chosen, expected)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("size", [2, 40])
def test_codes_that_are_not_finite_have_no_row(backend, device, metric, size):
    latents, codes = torch.randn(60, 5, device=device), torch.randn(size, 5, device=device)
    clean = nearest_row(latents, codes, metric=metric, backend=backend)
    codes[0, 2], codes[size - 1, 4] = torch.nan, -torch.inf
    clean[[0, size - 1]] = -1
    assert torch.equal(nearest_row(latents, codes, metric=metric, backend=backend), clean)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("case", ["no rows", "all masked", "all NaN", "the finite ones masked"])
def test_no_row_left(backend, device, metric, case):
    latents, codes = torch.randn(0 if case == "no rows" else 6, 4, device=device), torch.randn(5, 4, device=device)
    mask = torch.zeros(len(latents), dtype=torch.bool, device=device)
    if case == "all NaN":
        latents[:], mask[:] = torch.nan, True
    elif case == "the finite ones masked":
        latents[2:4], mask[2:4] = torch.inf, True
    assert nearest_row(latents, codes, mask=mask, metric=metric, backend=backend).tolist() == [-1] * 5
    if case == "no rows":
        assert nearest_row(latents, codes, metric=metric, backend=backend).tolist() == [-1] * 5


def test_one_row_left(backend, device):
    mask = torch.zeros(200, dtype=torch.bool, device=device)
    mask[123] = True
    codes = torch.randn(40, 8, device=device)
    assert nearest_row(torch.randn(200, 8, device=device), codes, mask=mask, backend=backend).tolist() == [123] * 40


def test_zero_vectors_under_cosine(backend, device):
    latents = torch.tensor([[-1.0, 0], [0, 0], [2, 0]], device=device)
    codes = torch.tensor([[0.0, 0], [1, 0], [-3, 1], [0, 5]], device=device)
    assert nearest_row(latents, codes, metric="cosine", backend=backend).tolist() == [0, 2, 0, 0]


def test_distances_beyond_the_dtype_are_still_compared(backend, device):
    latents, codes = torch.randn(50, 6, device=device) * 1e25, torch.randn(31, 6, device=device) * 1e25
    assert torch.equal(nearest_row(latents, codes, backend=backend).cpu(), true_distances(latents, codes).argmin(0))


def test_layouts_and_leading_dimensions(backend, device):
    latents, codes = torch.randn(3, 11, 4, 5, device=device).movedim(1, -1), torch.randn(11, 40, device=device).T
    mask = torch.rand(3, 4, 5, device=device) < 0.5
    kept = latents.clone()
    flat = latents.reshape(-1, 11).contiguous()
    assert torch.equal(nearest_row(latents, codes, backend=backend), nearest_row(flat, codes.contiguous(), backend=backend))
    assert_nearest(nearest_row(latents, codes, mask=mask, backend=backend), flat, codes, mask.reshape(-1))
    assert torch.equal(latents, kept)


def test_it_is_the_search_with_the_roles_exchanged(backend, device):
    latents, codes = torch.randn(500, 7, device=device, requires_grad=True), torch.randn(33, 7, device=device, requires_grad=True)
    rows = nearest_row(latents, codes, backend=backend)
    assert torch.equal(rows, nearest_code(codes, latents, backend=backend)) and not rows.requires_grad


def test_two_runs_give_the_same_bits(backend, device):
    latents, codes = torch.randn(400, 19, device=device).repeat(2, 1), torch.randn(101, 19, device=device)
    first, second = (nearest_row(latents, codes, backend=backend) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("requested", [None, "reference"])
def test_memory_does_not_grow_with_n_times_k(requested):
    resource = pytest.importorskip("resource")
    latents, codes = torch.randn(65536, 8), torch.randn(4096, 8)
    nearest_row(latents, codes[:8], backend=requested)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest_row(latents, codes, mask=torch.rand(65536) < 0.5, backend=requested)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 65536 * 4096 * 4 / 10


def test_compiles_without_a_graph_break(backend, device):
    def anchors(latents, codes, mask):
        return latents[nearest_row(latents, codes, mask=mask, backend=backend)] * 2

    arguments = (torch.randn(40, 6, device=device), torch.randn(12, 6, device=device), torch.rand(40, device=device) < 0.5)
    torch.testing.assert_close(torch.compile(anchors, fullgraph=True, backend="aot_eager")(*arguments), anchors(*arguments))


def test_exports_with_any_number_of_rows():
    class Anchors(torch.nn.Module):
        def forward(self, latents, codes, mask):
            return nearest_row(latents, codes, mask=mask)

    rows = torch.export.Dim("rows", min=2)
    shapes = {"latents": {0: rows}, "codes": None, "mask": {0: rows}}
    codes = torch.randn(5, 4)
    example = (torch.randn(6, 4), codes, torch.rand(6) < 0.5)
    exported = torch.export.export(Anchors(), example, dynamic_shapes=shapes).module()
    latents, mask = torch.randn(90, 4), torch.rand(90) < 0.5
    assert torch.equal(exported(latents, codes, mask), nearest_row(latents, codes, mask=mask))


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(codes=torch.zeros(0, 4)), ValueError, "codes"),
        (dict(codes=torch.zeros(3, 5)), ValueError, "latents.*5.*4"),
        (dict(codes=torch.zeros(3, 4, dtype=torch.float16)), TypeError, "latents.*float16.*float32"),
        (dict(latents=[1.0]), TypeError, "latents.*list"),
        (dict(mask=torch.ones(3, dtype=torch.bool)), ValueError, r"mask: expected shape .*got \(3,\)"),
        (dict(mask=torch.ones(2)), TypeError, "mask.*bool.*float32"),
        (dict(mask=[True, False]), TypeError, "mask.*list"),
        (dict(metric="dot"), ValueError, "metric.*dot"),
        (dict(backend="abacus"), BackendError, "abacus"),
    ],
)
def test_errors_name_the_argument(rows, change, error, words):
    arguments = dict(latents=torch.zeros(rows, 4), codes=torch.zeros(3, 4)) | change
    with pytest.raises(error, match=words):
        nearest_row(arguments.pop("latents"), arguments.pop("codes"), **arguments)
