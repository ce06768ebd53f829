"""Every backend finds the float64-nearest code, whatever the shape, the dtype or the offset."""

import pytest
import torch

from vqkit.backend import BackendError
from vqkit.ops import nearest_code, nearest_codes

SHAPES = [(0, 3, 4), (1, 1, 1), (5, 1, 7), (7, 33, 3), (129, 65, 8), (64, 257, 37), (33, 130, 96)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def true_distances(latents, codes, metric):
    """(N, K) in float64: squared Euclidean, or 1 - cosine with zero vectors at similarity 0."""
    x, c = latents.double().cpu(), codes.double().cpu()
    if metric == "l2":
        return (x[:, None] - c[None]).square().sum(-1)
    unit = [t / t.norm(dim=-1, keepdim=True).where(t.norm(dim=-1, keepdim=True) > 0, 1.0) for t in (x, c)]
    return 1 - (unit[0][:, None] * unit[1][None]).sum(-1)


def assert_nearest(latents, codes, metric, k, backend):
    distances, indices = nearest_codes(latents, codes, k, metric=metric, backend=backend)
    assert distances.shape == indices.shape == (len(latents), k) and indices.dtype == torch.int64
    truth = true_distances(latents, codes, metric)
    # Ties to the lowest index: a stable sort of what float64 can tell apart.
    best, order = truth.sort(dim=-1, stable=True)
    chosen = truth.gather(1, indices.cpu())
    scale = truth.abs().amax(-1, keepdim=True) if len(truth) else truth.new_zeros(0, 1)
    assert (chosen - best[:, :k] <= 1e-13 * (1 + scale)).all()
    gap = torch.cat([best.diff(dim=-1), torch.full_like(best[:, :1], torch.inf)], -1)[:, :k]
    clear = (gap > 1e-12 * (1 + scale)) & torch.cat([torch.ones_like(gap[:, :1]).bool(), gap[:, :-1] > 1e-12 * (1 + scale)], -1)
    assert torch.equal(indices.cpu()[clear], order[:, :k][clear])
    tolerance = 1e-12 if latents.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(distances.cpu().double(), chosen, rtol=tolerance, atol=tolerance * float(scale.max()) if len(scale) else 0)
    return indices


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nearest_by_a_float64_score(backend, device, dtype, shape, metric):
    n, size, dim = shape
    latents = torch.randn(n, dim).to(device, dtype)
    codes = torch.randn(size, dim).to(device, dtype)
    for k in {1, min(2, size), min(8, size)}:
        assert_nearest(latents, codes, metric, k, backend)


@pytest.mark.parametrize("case", ["offset", "tiny codebook", "duplicates", "scales", "latents are codes"])
def test_hard_codebooks(backend, device, case):
    latents, codes = torch.randn(300, 24), torch.randn(200, 24)
    if case == "offset":
        latents, codes = latents + 1000, codes + 1000
    elif case == "tiny codebook":
        codes = torch.empty(200, 24).uniform_(-1 / 200, 1 / 200)
    elif case == "duplicates":
        codes = codes[torch.arange(200) % 50]
    elif case == "scales":
        codes = codes * torch.logspace(-6, 3, 200)[:, None]
    else:
        latents = codes[torch.randint(200, (300,))]
    indices = assert_nearest(latents.to(device), codes.to(device), "l2", 1, backend)
    if case == "duplicates":
        assert indices.max() < 50


def test_ties_go_to_the_lowest_index(backend, device):
    codes = torch.tensor([[3.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], device=device)
    _, indices = nearest_codes(torch.zeros(2, 2, device=device), codes, 4, backend=backend)
    assert indices.tolist() == [[1, 2, 3, 4]] * 2


def test_rows_and_codes_that_are_not_finite(backend, device):
    latents, codes = torch.randn(6, 5), torch.randn(9, 5)
    latents[1, 2], latents[4, 0] = torch.nan, torch.inf
    codes[0, 1], codes[3, 3] = torch.nan, -torch.inf
    distances, indices = nearest_codes(latents.to(device), codes.to(device), 3, backend=backend)
    distances, indices = distances.cpu(), indices.cpu()
    assert indices[[1, 4]].tolist() == [[0, 1, 2]] * 2 and distances[[1, 4]].isnan().all()
    sound = torch.tensor([0, 2, 3, 5])
    truth = true_distances(latents[sound], codes, "l2").nan_to_num(torch.inf)
    assert torch.equal(indices[sound], truth.sort(dim=-1, stable=True).indices[:, :3])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e5), (torch.float32, 1e9), (torch.float32, 1e25), (torch.float64, 1e25)])
def test_one_code_far_away_costs_no_exactness(backend, device, dtype, scale, metric):
    latents, codes = torch.randn(150, 40, dtype=dtype), torch.randn(120, 40, dtype=dtype)
    codes[77] *= scale
    _, indices = nearest_codes(latents.to(device), codes.to(device), 2, metric=metric, backend=backend)
    assert torch.equal(indices.cpu(), true_distances(latents, codes, metric).sort(dim=-1, stable=True).indices[:, :2])


@pytest.mark.parametrize("n", [2, 6, 40])
def test_a_code_with_nan_is_not_chosen_where_all_others_point_away(backend, device, n):
    latents = torch.tensor([[1.0, 0], [0.5, 0.1]], device=device).repeat(n // 2, 1)
    codes = torch.tensor([[-1.0, 0], [torch.nan, 1], [-1, -0.5], [-1e25, 0]], device=device)
    distances, indices = nearest_codes(latents, codes, 1, metric="cosine", backend=backend)
    assert (indices == 2).all() and (distances > 1).all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("n", [3, 30])
def test_fewer_finite_codes_than_ranks(backend, device, n, metric):
    latents, codes = torch.randn(n, 4), torch.randn(5, 4)
    codes[0], codes[2, 1], codes[3, 3] = torch.nan, torch.inf, torch.nan
    latents[1] = 0
    distances, indices = nearest_codes(latents.to(device), codes.to(device), 4, metric=metric, backend=backend)
    distances, indices = distances.cpu(), indices.cpu()
    truth = true_distances(latents, codes[[1, 4]], metric)
    order = truth.sort(dim=-1, stable=True).indices
    assert torch.equal(indices, torch.cat([torch.tensor([1, 4])[order], torch.tensor([[0, 2]]).expand(n, 2)], 1))
    torch.testing.assert_close(distances[:, :2].double(), truth.gather(1, order), rtol=1e-5, atol=1e-6)
    assert distances[:, 2:].isposinf().all()
    distances, indices = nearest_codes(latents.to(device), codes[[0, 3]].to(device), 2, metric=metric, backend=backend)
    assert indices.tolist() == [[0, 1]] * n and distances.isposinf().all()


def test_zero_vectors_under_cosine(backend, device):
    latents = torch.tensor([[0.0, 0], [-1, -1]], device=device)
    codes = torch.tensor([[1.0, 0], [0, 0], [0, 2]], device=device)
    distances, indices = nearest_codes(latents, codes, 1, metric="cosine", backend=backend)
    assert indices[:, 0].tolist() == [0, 1] and distances[:, 0].tolist() == [1, 1]


def test_huge_values_do_not_overflow(backend, device):
    latents, codes = torch.randn(20, 6) * 1e25, torch.randn(31, 6) * 1e25
    assert_nearest_index = true_distances(latents, codes, "l2").argmin(-1)
    assert torch.equal(nearest_code(latents.to(device), codes.to(device), backend=backend).cpu(), assert_nearest_index)


def test_layouts_and_leading_dimensions(backend, device):
    latents = torch.randn(3, 11, 4, 5, device=device).movedim(1, -1)
    codes = torch.randn(11, 40, device=device).T
    indices = nearest_code(latents, codes, backend=backend)
    assert indices.shape == (3, 4, 5)
    flat = nearest_code(latents.reshape(-1, 11).contiguous(), codes.contiguous(), backend=backend)
    assert torch.equal(indices.reshape(-1), flat)


def test_two_runs_give_the_same_bits(backend, device):
    latents, codes = torch.randn(257, 19, device=device), torch.randn(301, 19, device=device)
    first, second = (nearest_codes(latents, codes, 5, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_fast_precision_is_near(backend, device):
    latents, codes = torch.randn(100, 16, device=device), torch.randn(64, 16, device=device)
    truth = true_distances(latents, codes, "l2")
    indices = nearest_code(latents, codes, precision="fast", backend=backend).cpu()
    torch.testing.assert_close(truth.gather(1, indices[:, None])[:, 0], truth.amin(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("requested", [None, "reference"])
def test_memory_does_not_grow_with_n_times_k(requested):
    resource = pytest.importorskip("resource")
    latents, codes = torch.randn(8192, 8), torch.randn(65536, 8)
    nearest_code(latents[:8], codes, backend=requested)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest_code(latents, codes, backend=requested)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 8192 * 65536 * 4 / 10


def test_compiles_without_a_graph_break(backend, device):
    def chosen(latents, codes):
        return codes[nearest_code(latents, codes, backend=backend)] * 2

    latents, codes = torch.randn(40, 6, device=device), torch.randn(12, 6, device=device)
    torch.testing.assert_close(torch.compile(chosen, fullgraph=True, backend="aot_eager")(latents, codes), chosen(latents, codes))


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_any_number_of_rows_and_codes(strict):
    class Search(torch.nn.Module):
        def forward(self, latents, codes):
            return nearest_codes(latents, codes, 2)

    rows, size = torch.export.Dim("rows"), torch.export.Dim("size", min=2)
    shapes = {"latents": {0: rows}, "codes": {0: size}}
    exported = torch.export.export(Search(), (torch.randn(6, 4), torch.randn(20, 4)), dynamic_shapes=shapes, strict=strict).module()
    latents, codes = torch.randn(9, 4), torch.randn(3, 4)
    assert torch.equal(exported(latents, codes)[1], nearest_codes(latents, codes, 2)[1])


def test_registration(backend, device):
    arguments = (torch.randn(9, 4, device=device), torch.randn(7, 4, device=device), 2, False, True, backend)
    torch.library.opcheck(torch.ops.vqkit.nearest_codes, arguments)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(codes=torch.zeros(0, 4)), ValueError, "codes"),
        (dict(codes=torch.zeros(3, 5)), ValueError, "latents.*5.*4"),
        (dict(codes=torch.zeros(3, 4, dtype=torch.float16)), TypeError, "latents.*float16.*float32"),
        (dict(latents=torch.zeros(3, 4, dtype=torch.int64)), TypeError, "latents.*int64"),
        (dict(k=4), ValueError, "k: .*4"),
        (dict(k=0), ValueError, "k: .*0"),
        (dict(k=1.0), TypeError, "k: .*1.0"),
        (dict(k=True), TypeError, "k: .*True"),
        (dict(latents=torch.zeros(2, 4).to(torch.float8_e5m2)), TypeError, "latents: .*float32, float16, bfloat16 or float64.*float8"),
        (dict(metric="dot"), ValueError, "metric.*dot"),
        (dict(precision="sloppy"), ValueError, "precision.*sloppy"),
        (dict(backend="abacus"), BackendError, "abacus"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = dict(latents=torch.zeros(2, 4), codes=torch.zeros(3, 4), k=1) | change
    with pytest.raises(error, match=words):
        nearest_codes(arguments.pop("latents"), arguments.pop("codes"), arguments.pop("k"), **arguments)
