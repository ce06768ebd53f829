import pytest
import torch

from vqkit.kernels import probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := probe.unavailable(torch.zeros(1, device=DEVICE)):
    pytest.skip(reason, allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from vqkit.kernels import exhaustive, nearest, tile  # noqa: E402
from vqkit.kernels.nearest import nearest_codes  # noqa: E402
from vqkit.kernels.operands import place  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")


@triton.jit
def _place_kernel(codes_ptr, lines_ptr, CODES: tl.constexpr, GROUP: tl.constexpr, SLOTS: tl.constexpr, LENGTH: tl.constexpr):
    code = tl.arange(0, LENGTH)
    line = place(tl.load(codes_ptr + code, mask=code < 96, other=0), CODES, GROUP, SLOTS)
    tl.store(lines_ptr + code, line, mask=code < 96)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def exact_distances(latents, codes, cosine):
    """(N, K) in float64."""
    latents, codes = latents.double(), codes.double()
    if cosine:
        norms = latents.norm(dim=1)[:, None] * codes.norm(dim=1)
        return 1 - latents @ codes.T / norms.where(norms > 0, 1.0)
    return (latents[:, None] - codes).square().sum(-1)


def check(latents, codes, k, cosine=False, exact=True, slack=1e-12):
    """Compare a search with float64: the distances are minimal always, the indices equal where the margin exceeds rounding."""
    distances, indices = nearest_codes(latents, codes, k, cosine, exact)
    truth = exact_distances(latents, codes, cosine)
    ordered, order = truth.sort(dim=1, stable=True)
    chosen = truth.gather(1, indices)
    slack = slack * (1 + truth.abs().amax())
    assert (chosen - ordered[:, :k]).abs().max() <= slack
    margins = torch.cat([ordered, ordered[:, -1:] + 1], dim=1).diff(dim=1)[:, :k]
    margins = torch.minimum(margins, torch.cat([margins[:, :1], margins[:, :-1]], dim=1))
    assert ((indices == order[:, :k]) | (margins <= 2 * slack)).all()
    assert distances.dtype == torch.promote_types(latents.dtype, torch.float32)
    rounding = 1e-14 if latents.dtype == torch.float64 else 2e-7
    torch.testing.assert_close(distances.double(), chosen, rtol=rounding, atol=rounding)
    return distances, indices


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("n, size, d, k", [(1, 1, 1, 1), (130, 7, 3, 1), (70, 300, 65, 1), (40, 7, 3, 3), (20, 270, 140, 2)])
def test_nearest_codes(n, size, d, k, dtype, cosine):
    latents, codes = torch.randn(n, d, device=DEVICE).to(dtype), torch.randn(size, d, device=DEVICE).to(dtype)
    check(latents, codes, k, cosine)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that every loop turns several times."""
    monkeypatch.setattr(tile, "search", lambda *a: tile.Search(16, 16, 16, 4, 1, 4 if a[-1] == 2 else 1, 2))
    monkeypatch.setattr(tile, "exhaustive", lambda *_: tile.Tile(4, 8, 4, 4, 1))
    monkeypatch.setattr(tile, "rows", lambda *_: tile.Tile(8, 1, 8, 4, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("cosine", [False, True])
def test_many_tiles(small_tiles, dtype, k, cosine):
    latents, codes = torch.randn(19, 21, device=DEVICE).to(dtype), torch.randn(35, 21, device=DEVICE).to(dtype)
    codes[34], codes[20] = codes[3], codes[3]
    latents[5:8] = codes[3]
    check(latents, codes, k, cosine)


@pytest.fixture
def parts(small_tiles, monkeypatch):
    """Every search is shared by programs that have a part of the codes each, one of them none or nearly none."""
    monkeypatch.setattr(tile, "parts", lambda wanted, tiles: min(5, tiles))
    if DEVICE == "cpu":
        monkeypatch.setattr(probe, "processors", lambda _: 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("cosine", [False, True])
def test_codes_in_parts(parts, dtype, k, cosine):
    latents, codes = torch.randn(19, 21, device=DEVICE).to(dtype), torch.randn(99, 21, device=DEVICE).to(dtype)
    # Equal codes lie in different parts.
    codes[98], codes[20] = codes[3], codes[3]
    latents[5:8], latents[9] = codes[3], 0
    _, indices = check(latents, codes, k, cosine)
    assert (indices[5:8, 0] == 3).all()
    if k > 1:
        assert indices[5:8, :3].tolist() == [[3, 20, 98]] * 3
    if cosine:
        assert indices[9].tolist() == list(range(k))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_codes_in_parts_and_whole_give_the_same_bits(small_tiles, monkeypatch, k, cosine, exact):
    latents, codes = torch.randn(18, 6, device=DEVICE), torch.randn(40, 6, device=DEVICE).repeat(2, 1)
    codes[:33], codes[70, 2], latents[4, 1], latents[11] = float("nan"), float("inf"), float("nan"), 0
    whole = nearest_codes(latents, codes, k, cosine, exact)
    monkeypatch.setattr(tile, "parts", lambda wanted, tiles: min(3, tiles))
    parts = nearest_codes(latents, codes, k, cosine, exact)
    assert torch.equal(whole[1], parts[1]) and torch.equal(whole[0].nan_to_num(-1), parts[0].nan_to_num(-1))


@pytest.mark.parametrize("apart", [True, False])
def test_what_float32_cannot_tell_apart_is_searched_again(parts, apart):
    """Codes that differ by a bit or two, in different parts or in one: a wrong certificate of the merged lists shows."""
    codes = torch.randn(45, 21, device=DEVICE).sign()
    codes = (codes.repeat(2, 1) if apart else codes.repeat_interleave(2, 0)) + 2e-7 * torch.randn(90, 21, device=DEVICE)
    check(torch.randn(40, 21, device=DEVICE), codes, 1, slack=1e-15)


@pytest.mark.parametrize("finite", [0, 2])
@pytest.mark.parametrize("cosine", [False, True])
def test_parts_without_a_finite_code(parts, finite, cosine):
    codes = torch.full((100, 3), float("nan"), device=DEVICE)
    codes[[60, 90][:finite]] = torch.randn(finite, 3, device=DEVICE)
    latents = torch.randn(20, 3, device=DEVICE)
    distances, indices = nearest_codes(latents, codes, 3, cosine, True)
    if finite:
        order = exact_distances(latents, codes[[60, 90]], cosine).sort(dim=1).indices
        assert torch.equal(indices[:, :2], torch.tensor([60, 90], device=DEVICE)[order])
    assert indices[:, finite:].tolist() == [list(range(3 - finite))] * 20 and distances[:, finite:].isposinf().all()


@pytest.mark.parametrize("pending", [0, 1, 5, 17, 40])
@pytest.mark.parametrize("k", [1, 3])
def test_any_number_of_pending_rows_is_shared_out(parts, pending, k):
    """From no row to more groups of rows than programs: each pending row is searched again, no other is touched."""
    latents, codes = torch.randn(40, 6, device=DEVICE), torch.randn(90, 6, device=DEVICE)
    order = torch.randperm(40, device=DEVICE)
    indices = torch.full((40, k), -3, device=DEVICE)
    count = torch.tensor([pending], device=DEVICE, dtype=torch.int32)
    exhaustive.search(latents, codes, torch.ones(90, dtype=torch.float64, device=DEVICE), count, order, indices, False)
    truth = exact_distances(latents, codes, False).sort(dim=1).indices[:, :k]
    assert torch.equal(indices[order[:pending]], truth[order[:pending]]) and (indices[order[pending:]] == -3).all()


def test_few_rows_are_shared_by_all_processors(monkeypatch):
    """A block of rows has a program for each part of the codes: a GPU with 132 processors is not left to 2 programs."""
    grids, kernel = [], nearest._search_kernel

    class Recorded:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(nearest, "_search_kernel", Recorded())
    monkeypatch.setattr(tile, "search", lambda *a: tile.Search(16, 16, 16, 4, 1, 4 if a[-1] == 2 else 1, 2))
    monkeypatch.setattr(probe, "processors", lambda _: 3)
    check(torch.randn(20, 5, device=DEVICE), torch.randn(200, 5, device=DEVICE), 1)
    check(torch.randn(90, 5, device=DEVICE), torch.randn(200, 5, device=DEVICE), 1)
    assert grids == [(2, 3), (6, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [False, True])
def test_duplicated_codes_go_to_the_lowest_index(dtype, cosine):
    codes = torch.randn(90, 5, device=DEVICE).to(dtype).repeat(3, 1)
    latents = torch.randn(60, 5, device=DEVICE).to(dtype)
    _, indices = nearest_codes(latents, codes, 4, cosine, True)
    assert torch.equal(indices[:, 0] + 90, indices[:, 1]) and torch.equal(indices[:, 1] + 90, indices[:, 2])
    assert (indices[:, 0] < 90).all() and (indices[:, 3] < 90).all()


def test_all_eight_codes_in_order():
    check(torch.randn(30, 4, device=DEVICE), torch.randn(8, 4, device=DEVICE), 8)


@pytest.mark.parametrize("cosine", [False, True])
def test_ties_between_different_codes(cosine):
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], device=DEVICE)
    latents = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-3.0, -3.0], [0.0, 2.0]], device=DEVICE)
    _, indices = nearest_codes(latents, codes, 2, cosine, True)
    assert indices.tolist() == [[0, 1], [0, 1], [2, 3], [1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("left_out", [0, 250])
def test_few_rows_need_the_exhaustive_search(dtype, offset, left_out):
    """Nor does that change where many codes are NaN, which is how rows are left out of ``nearest_row``."""
    latents, codes = (torch.randn(300, 32, device=DEVICE) + offset).to(dtype), (torch.randn(500, 32, device=DEVICE) + offset).to(dtype)
    codes[500 - left_out :] = float("nan")
    indices = torch.full((300, 1), -1, device=DEVICE)
    assert nearest._search(latents, codes, indices, False, True).item() <= 15
    assert torch.equal(indices[:, 0], exact_distances(latents, codes[: 500 - left_out], False).min(dim=1).indices)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("d", [8, 64, 256])
def test_the_bound_covers_truncating_tensor_cores(split, d):
    """Sums of four products cut to 24 bits stay within the bound on data of one sign, in two bfloat16 parts as in float16."""
    generator = torch.Generator().manual_seed(d)
    rows, codes = (torch.rand(40, d, generator=generator, dtype=torch.float32) + 0.5 for _ in range(2))

    def cut(value, bits):
        mantissa, exponent = torch.frexp(value.double())
        return torch.ldexp(torch.trunc(mantissa * 2.0**bits), exponent - bits)

    def product(a, b, start):
        for chunk in range(0, d, 4):
            # Every term loses what lies below the last bit of the largest, then the sum is cut.
            terms = torch.cat([start[..., None], a[:, None, chunk : chunk + 4] * b[None, :, chunk : chunk + 4]], dim=-1)
            last_bit = torch.ldexp(torch.ones(()).double(), torch.frexp(terms.abs().amax(-1, keepdim=True)).exponent - 24)
            start = cut((torch.trunc(terms / last_bit) * last_bit).sum(-1), 24)
        return start

    norms, missing = rows.double().norm(dim=1)[:, None] * codes.double().norm(dim=1), 0.0
    if split:
        highs = [v.bfloat16().double() for v in (rows, codes)]
        lows = [(v - high).bfloat16().double() for v, high in zip((rows.double(), codes.double()), highs)]
        residuals = [v - high - low for v, high, low in zip((rows.double(), codes.double()), highs, lows)]
        result = product(lows[0], highs[1], torch.zeros(40, 40, dtype=torch.float64))
        result = product(highs[0], highs[1], product(highs[0], lows[1], result))
        for a, b in ((lows[0], lows[1]), (rows.double(), residuals[1]), (residuals[0], codes.double())):
            missing += a.norm(dim=1)[:, None] * b.norm(dim=1)
    else:
        rows, codes = rows.half(), codes.half()
        result = product(rows.double(), codes.double(), torch.zeros(40, 40, dtype=torch.float64))
    error = (result - rows.double() @ codes.double().T).abs()
    assert (error <= nearest.relative_bound(d, 1 + split) * norms + missing).all()


@pytest.mark.parametrize("group, slots", [(1, 1), (2, 8), (8, 2), (4, 4), (16, 1)])
def test_every_code_has_its_place_in_a_tile(group, slots):
    """Codes that follow each other share a group, and a group's columns lie ``slots`` apart in the tile they belong to."""
    code = torch.arange(96, device=DEVICE)
    line = torch.empty_like(code)
    _place_kernel[(1,)](code, line, CODES=32, GROUP=group, SLOTS=slots, LENGTH=128)
    assert torch.equal(line.sort().values, code) and torch.equal(line // 32, code // 32)
    groups = line.view(-1, group)
    assert (groups.diff(dim=1) == slots).all()


def test_more_rows_than_32_bits_count_are_refused():
    many, few = (torch.empty(1, 1, dtype=torch.float16, device=DEVICE).expand(n, 1) for n in (2**31, 2**31 - 1))
    assert nearest.rejects(few, few) is None
    assert nearest.rejects(many, few) == f"latents: expected fewer than 2^31 rows, got {2**31}"
    assert nearest.rejects(few, many).startswith("codes: ")


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_magnitudes_whose_squares_leave_float32(scale, cosine):
    latents, codes = torch.randn(20, 5, device=DEVICE) * scale, torch.randn(12, 5, device=DEVICE) * scale
    _, indices = nearest_codes(latents, codes, 2, cosine, True)
    truth = exact_distances(latents, codes, cosine)
    assert torch.equal(indices, truth.sort(dim=1).indices[:, :2])


@pytest.mark.parametrize("exact", [False, True])
def test_one_enormous_code(exact):
    codes = torch.randn(12, 5, device=DEVICE)
    codes[3] = 3e38
    check(torch.randn(20, 5, device=DEVICE), codes, 1, exact=exact)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_that_are_not_finite(dtype, k, cosine):
    latents, codes = torch.randn(20, 5, device=DEVICE).to(dtype), torch.randn(12, 5, device=DEVICE).to(dtype)
    clean = nearest_codes(latents, codes, k, cosine, True)
    latents[3, 1], latents[7, 4], latents[9, 0] = float("nan"), float("inf"), -float("inf")
    distances, indices = nearest_codes(latents, codes, k, cosine, True)
    faulty = torch.zeros(20, dtype=torch.bool, device=DEVICE)
    faulty[[3, 7, 9]] = True
    assert (indices[faulty] == torch.arange(k, device=DEVICE)).all() and distances[faulty].isnan().all()
    assert torch.equal(indices[~faulty], clean[1][~faulty]) and torch.equal(distances[~faulty], clean[0][~faulty])


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_codes_that_are_not_finite_are_never_chosen(dtype, cosine, exact):
    latents, codes = torch.randn(20, 5, device=DEVICE).to(dtype), torch.randn(12, 5, device=DEVICE).to(dtype)
    codes[0], codes[4, 2], codes[11, 0] = float("nan"), float("inf"), -float("inf")
    sound = torch.tensor([1, 2, 3, 5, 6, 7, 8, 9, 10], device=DEVICE)
    for k in (1, 8):
        _, indices = nearest_codes(latents, codes, k, cosine, exact)
        _, expected = nearest_codes(latents, codes[sound], k, cosine, exact)
        assert torch.equal(indices, sound[expected])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
def test_fewer_finite_codes_than_ranks(cosine, exact):
    codes = torch.full((4, 3), float("nan"), device=DEVICE)
    codes[0], codes[2] = -0.5, 1.0
    latents = torch.ones(3, 3, device=DEVICE)
    latents[1] = 0
    distances, indices = nearest_codes(latents, codes, 4, cosine, exact)
    assert indices.tolist() == [[2, 0, 1, 3], [0, 2, 1, 3], [2, 0, 1, 3]]
    assert distances[:, :2].isfinite().all() and distances[:, 2:].isposinf().all()
    _, indices = nearest_codes(torch.ones(2, 3, device=DEVICE), codes[[1, 3]], 1, False, True)
    assert indices.tolist() == [[0]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vectors_have_similarity_zero(dtype):
    latents, codes = torch.randn(6, 4, device=DEVICE).to(dtype), -torch.rand(5, 4, device=DEVICE).to(dtype) - 0.5
    latents[2], codes[3] = 0, 0
    latents[4] = latents[4].abs()
    distances, indices = nearest_codes(latents, codes, 3, True, True)
    assert indices[2].tolist() == [0, 1, 2] and (distances[2] == 1).all()
    assert indices[4, 0] == 3 and distances[4, 0] == 1


@pytest.mark.parametrize("k", [1, 3])
def test_no_rows(k):
    distances, indices = nearest_codes(torch.zeros(0, 4, device=DEVICE), torch.randn(5, 4, device=DEVICE), k, False, True)
    assert distances.shape == indices.shape == (0, k) and indices.dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [False, True])
def test_the_fast_search_is_wrong_by_float32_rounding_at_most(dtype, cosine):
    latents, codes = torch.randn(80, 20, device=DEVICE).to(dtype), torch.randn(300, 20, device=DEVICE).to(dtype)
    check(latents, codes, 2, cosine, exact=False, slack=1e-6)


def test_two_runs_give_the_same_bits():
    latents, codes = torch.randn(150, 6, device=DEVICE), torch.randn(40, 6, device=DEVICE).repeat(2, 1)
    first, second = (nearest_codes(latents, codes, 2, False, True) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
