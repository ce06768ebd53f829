"""The compiled search against a float64 search of all pairs, on every instruction set that this processor has."""

import pytest
import torch

from vqkit import native

pytestmark = pytest.mark.skipif(native._native is None, reason="the native module is not built")

ISAS = ("portable", "avx2", "avx512", "amx")
SIZES = [(n, k, d) for n in (0, 1, 7, 129) for k in (1, 2, 33, 1000) for d in (1, 3, 8, 65, 256)]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("VQKIT_ISA", request.param)
    try:
        native._native.isa()
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


def scores_of(latents, codes, cosine):
    """Float64 scores (N, K), larger is nearer; codes that are not finite score -inf, codes with the same bits score the same."""
    finite = codes.isfinite().all(1)
    # A matrix product rounds equal columns differently where its blocks end, so each distinct code is scored once.
    distinct, copies = codes.double().nan_to_num().unique(dim=0, return_inverse=True)
    latents = latents.double()
    if cosine:
        norm = distinct.norm(dim=1)
        scores = torch.where(norm > 0, latents @ distinct.T / norm, 0.0)
    else:
        scores = -torch.cdist(latents, distinct, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.where(finite, scores[:, copies], -torch.inf)


def check(latents, codes, k, cosine, rtol=1e-12):
    """Ranks equal those of a stable sort of float64 scores, but for scores that float64 itself cannot tell apart."""
    distances, indices = native.nearest_codes(latents, codes, k, cosine, True)
    scores = scores_of(latents, codes, cosine)
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    chosen = scores.gather(1, indices)
    expected, order = expected[:, :k], order[:, :k]
    assert indices.dtype == torch.int64 and indices.shape == (len(latents), k)
    assert torch.allclose(chosen, expected, rtol=rtol, atol=1e-300)
    differs = indices != order
    assert not (differs & ((chosen - expected).abs() > rtol * expected.abs())).any()
    # codes with the same bits have the same score, so the lower index comes first
    same_bits = (codes[indices] == codes[order]).all(-1)
    assert not (differs & same_bits).any()
    if cosine:
        norm = latents.double().norm(dim=1, keepdim=True)
        expected = 1 - torch.where(norm > 0, expected / norm, 0.0)
    else:
        expected = -expected
    tolerance = 1e-12 if latents.dtype == torch.float64 else 3e-7
    # a distance beyond float32 is infinite
    assert torch.allclose(distances, expected.to(distances.dtype), rtol=tolerance, atol=tolerance)
    return indices


def make(kind, n, k, d, dtype):
    generator = torch.Generator().manual_seed(1000 * n + 10 * k + d)
    latents = torch.randn(n, d, generator=generator, dtype=dtype)
    codes = torch.randn(k, d, generator=generator, dtype=dtype)
    if kind == "offset":
        latents, codes = latents + 1000, codes + 1000
    if kind == "fresh":
        codes = (torch.rand(k, d, generator=generator, dtype=dtype) * 2 - 1) / k
    if kind == "duplicates":
        codes[k // 2 :] = codes[: k - k // 2].clone()
    if kind == "collapsed":
        codes = codes[:1] + 1e-6 * codes
    return latents, codes


@pytest.mark.parametrize("kind", ["gaussian", "offset", "fresh", "duplicates", "collapsed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_exact_on_every_shape(isa, kind, dtype, cosine):
    for n, k, d in SIZES:
        latents, codes = make(kind, n, k, d, dtype)
        for ranks in (1, 2, 8):
            if ranks <= k:
                check(latents, codes, ranks, cosine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_half_types_are_searched_exactly(isa, dtype, cosine):
    # eight bits of mantissa give many exact ties
    latents, codes = make("gaussian", 129, 1000, 8, torch.float32)
    indices = check(latents.to(dtype), codes.to(dtype), 2, cosine)
    again = native.nearest_codes(latents.to(dtype).float(), codes.to(dtype).float(), 2, cosine, True)[1]
    assert torch.equal(indices, again)


@pytest.mark.parametrize("kind", ["gaussian", "offset", "duplicates", "collapsed"])
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_bfloat16_is_searched_exactly_on_every_shape(isa, kind, cosine):
    """Products of bfloat16 and, where a centre is needed, of float32 on the processors that have both."""
    for n, k, d in [(5, 33, 1), (7, 33, 2), (129, 1000, 7), (129, 1000, 8), (129, 257, 65), (300, 2000, 34)]:
        latents, codes = (t.to(torch.bfloat16) for t in make(kind, n, k, d, torch.float32))
        for ranks in (1, 2, 8):
            check(latents, codes, ranks, cosine)
        distances, indices = native.nearest_codes(latents, codes, 1, cosine, False)
        truth = scores_of(latents, codes, cosine)
        # those with an offset are as close as float32 tells them apart
        if kind != "offset":
            assert torch.allclose(truth.gather(1, indices), truth.amax(1, keepdim=True), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-37, 1e-39, 1e30], ids=str)
def test_bfloat16_that_is_subnormal_or_huge(isa, scale):
    latents, codes = make("gaussian", 60, 200, 6, torch.float32)
    check(latents.to(torch.bfloat16), (codes * scale).to(torch.bfloat16), 2, False)
    check((latents * scale).to(torch.bfloat16), codes.to(torch.bfloat16), 2, False)
    check((latents * scale).to(torch.bfloat16), (codes * scale).to(torch.bfloat16), 2, False)
    # coordinates that products leave out decide: large ones are equal, subnormal ones meet a large latent
    codes[:, :5], codes[:, 5:] = codes[:1, :5], codes[:, 5:] * 1e-39
    latents[:, 5] *= 1e17
    check(latents.to(torch.bfloat16), codes.to(torch.bfloat16), 2, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("descending", [False, True])
def test_codes_in_the_order_of_their_distance(isa, dtype, descending):
    """Every code is nearer than all before it, or none is: limits move at every code, or at the first only."""
    codes = torch.arange(1, 700.0)[:, None] * torch.tensor([[1.0, 0.5, -0.25]])
    codes = (codes.flip(0) if descending else codes).to(dtype)
    latents = (torch.randn(50, 3) / 8).to(dtype)
    for ranks in (1, 3, 8):
        check(latents, codes, ranks, False)
        check(latents, torch.cat([codes, codes]), ranks, False)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_near_ties_far_apart_in_the_table(isa, ranks):
    """Copies and near copies of the nearest codes, up to as many as the ranks and more, wherever they are."""
    generator = torch.Generator().manual_seed(ranks)
    latents, codes = make("gaussian", 90, 3000, 20, torch.float32)
    for copies in (1, 2, 3, 9, 40):
        near = latents.repeat_interleave(copies, 0) + 0.1
        near += 1e-7 * torch.randn(near.shape, generator=generator) * (torch.rand(len(near), 1, generator=generator) < 0.5)
        table = torch.cat([codes, near])[torch.randperm(len(codes) + len(near), generator=generator)]
        check(latents, table, ranks, False)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2, 3, 25])
def test_heads_are_searches_of_their_own(isa, heads, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, k, d in [(0, 3, 2), (3, 70, 5), (90, 300, 33)]:
            pairs = [make("gaussian", n, k, d, torch.float32) for head in range(heads)]
            latents, codes = (torch.stack([pair[side] * (head + 1) for head, pair in enumerate(pairs)]) for side in (0, 1))
            distances, indices = native.nearest_codes(latents, codes, 2, False, True)
            assert indices.shape == distances.shape == (heads, n, 2)
            for head in range(heads):
                alone = native.nearest_codes(latents[head], codes[head], 2, False, True)
                assert torch.equal(distances[head], alone[0]) and torch.equal(indices[head], alone[1])
    finally:
        torch.set_num_threads(before)


def test_several_blocks_chunks_and_groups(isa):
    """More codes than a packed block holds and more rows than are in flight at a time."""
    latents, codes = make("gaussian", 16384 + 137, 257, 3, torch.float32)
    check(latents, codes, 2, False)
    latents, codes = make("duplicates", 300, 5000, 129, torch.float32)
    check(latents, codes, 1, False)


def test_near_ties_need_the_second_look(isa):
    """Latents halfway between codes, many of them equally far: float32 alone cannot decide."""
    codes = torch.cartesian_prod(*[torch.arange(4.0)] * 5)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(0, 7, (400, 5), generator=generator) / 2 + 0.0
    check(latents, codes, 1, False)
    check(latents + 1e-7, codes, 8, False)
    shuffled = codes[torch.randperm(len(codes), generator=generator)]
    check(latents, shuffled, 8, False)


def test_one_code_far_away_costs_no_exactness(isa):
    latents, codes = make("gaussian", 200, 500, 16, torch.float32)
    codes[77] *= 1e6
    check(latents, codes, 2, False)
    codes[78] = 1e25
    check(latents, codes, 2, False)


def test_values_that_overflow_float32_scores(isa):
    latents, codes = make("gaussian", 9, 40, 5, torch.float32)
    check(latents * 1e30, codes * 1e30, 2, False)
    check(latents * 1e30, codes * 1e30, 2, True)
    check(latents * 1e-30, codes * 1e-30, 2, True)
    check(latents * 1e-25, codes * 1e-25, 2, False)


@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_rows_and_codes_that_are_not_finite(isa, cosine, n, value):
    latents, codes = make("gaussian", n, 50, 6, torch.float32)
    latents[1, 3] = value
    codes[[0, 7, 49], 2] = value
    distances, indices = native.nearest_codes(latents, codes, 8, cosine, True)
    assert indices[1].tolist() == list(range(8)) and distances[1].isnan().all()
    finite = [row for row in range(n) if row != 1]
    assert torch.equal(indices[finite], check(latents[finite], codes, 8, cosine))
    assert not torch.isin(indices[finite], torch.tensor([0, 7, 49])).any()


def test_zero_vectors_under_cosine(isa):
    for n in (3, 30):
        latents, codes = make("gaussian", n, 20, 6, torch.float32)
        latents[0] = 0
        codes[4] = 0
        distances, indices = native.nearest_codes(latents, codes, 3, True, True)
        assert indices[0].tolist() == [0, 1, 2] and distances[0].tolist() == [1.0, 1.0, 1.0]
        check(latents[1:], codes, 3, True)
        # a zero code is as near as an orthogonal one, nearer than one that points away
        away = -latents[1:2].abs() @ torch.ones(6, 1) * torch.ones(1, 6)
        distances, indices = native.nearest_codes(latents[1:2].abs(), torch.cat([away, torch.zeros(1, 6)]), 1, True, True)
        assert indices.item() == 1 and distances.item() == 1.0


def test_all_codes_equal_gives_the_first(isa):
    latents, codes = make("gaussian", 100, 300, 12, torch.float32)
    indices = native.nearest_codes(latents, codes[5:6].repeat(300, 1), 8, False, True)[1]
    assert torch.equal(indices, torch.arange(8).expand(100, 8))


def test_fast_is_accurate_to_float32(isa):
    for cosine in (False, True):
        latents, codes = make("gaussian", 129, 1000, 65, torch.float32)
        distances, indices = native.nearest_codes(latents, codes, 3, cosine, False)
        scores = scores_of(latents, codes, cosine)
        expected = scores.topk(3, dim=1).values
        assert torch.allclose(scores.gather(1, indices), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(native.nearest_codes(latents, codes, 3, cosine, False)[1], indices)
        # equal codes still go to the lowest index
        doubled = native.nearest_codes(latents, torch.cat([codes, codes]), 1, cosine, False)[1]
        assert (doubled < 1000).all()


@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_threads_do_not_change_bits(isa, cosine, exact):
    latents, codes = make("duplicates", 700, 1500, 40, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native.nearest_codes(latents, codes, 2, cosine, exact))
    finally:
        torch.set_num_threads(before)
    for distances, indices in results[1:]:
        assert torch.equal(distances, results[0][0]) and torch.equal(indices, results[0][1])


def test_instruction_sets_agree_to_the_bit(monkeypatch):
    latents, codes = make("gaussian", 200, 400, 37, torch.float32)
    results = []
    for name in ISAS:
        monkeypatch.setenv("VQKIT_ISA", name)
        try:
            native._native.isa()
        except ValueError:
            continue
        dtypes = (torch.float32, torch.bfloat16)
        results.append([native.nearest_codes(latents.to(dtype), codes.to(dtype), 2, cosine, True) for dtype in dtypes for cosine in (False, True)])
    for result in results[1:]:
        for (distances, indices), (first_distances, first_indices) in zip(result, results[0], strict=True):
            assert torch.equal(distances, first_distances) and torch.equal(indices, first_indices)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("n", [2, 6, 40])
def test_codes_that_are_not_finite_lose_to_codes_that_point_away(isa, n, value):
    latents, codes = torch.rand(n, 5) + 0.5, -torch.rand(9, 5) - 0.5
    codes[3, 2], codes[8] = value, -1e25
    check(latents, codes, 8, True)


def test_refusals_name_the_argument(monkeypatch):
    latents, codes = make("gaussian", 4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match=r"codes: expected shape \(any, 2\), got \(3, 1\)"):
        native.nearest_codes(latents, codes[:, :1].contiguous(), 1, False, True)
    with pytest.raises(ValueError, match=r"latents: expected shape \(any, any\), got \(2,\)"):
        native.nearest_codes(latents[0], codes, 1, False, True)
    with pytest.raises(ValueError, match=r"codes: expected shape \(2, any, 2\), got \(1, 3, 2\)"):
        native.nearest_codes(torch.zeros(2, 4, 2), codes[None], 1, False, True)
    for k in (0, 4):
        with pytest.raises(ValueError, match="k: expected 1 to 3"):
            native.nearest_codes(latents, codes, k, False, True)
    with pytest.raises(ValueError, match="codes: expected a contiguous"):
        native.nearest_codes(latents, codes.T.contiguous().T, 1, False, True)
    with pytest.raises(RuntimeError, match="latents: .*meta"):
        native.nearest_codes(latents.to("meta"), codes, 1, False, True)
    monkeypatch.setenv("VQKIT_ISA", "pentium")
    with pytest.raises(ValueError, match="VQKIT_ISA must be .* got pentium"):
        native.nearest_codes(latents, codes, 1, False, True)
    assert "pentium" in native.describe()["isa"]


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this processor has no matrix unit")
def test_other_users_of_the_matrix_unit_are_not_disturbed(monkeypatch):
    latents, codes = make("gaussian", 300, 200, 40, torch.float32)
    left, right = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16) for seed in (0, 1))
    product = left @ right
    expected = native.nearest_codes(latents, codes, 1, False, True)[1]
    for _ in range(3):
        assert torch.equal(native.nearest_codes(latents, codes, 1, False, True)[1], expected)
        assert torch.equal(left @ right, product)
    monkeypatch.setenv("VQKIT_ISA", "portable")
    assert torch.equal(native.nearest_codes(latents, codes, 1, False, True)[1], expected)
