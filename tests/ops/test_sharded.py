"""Ranks that hold a shard of the codebook each find what one rank finds that holds all of it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqkit.ops import gather_sharded_codes, nearest_codes, sharded_nearest_codes

_START = """
import os, datetime, faulthandler, json, sys, time
import torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from vqkit.ops import gather_sharded_codes, nearest_codes, sharded, sharded_nearest_codes

folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
faulthandler.dump_traceback_later(220, exit=True)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=120)
)
"""

_SEARCH = """
tensors, settings = load_file(f"{folder}/cases.safetensors"), json.load(open(f"{folder}/cases.json"))
found = {}
for block in (sharded._BLOCK, 150):  # the second makes many blocks of a few rows
    sharded._BLOCK = block
    for name, case in settings.items():
        latents, shard = tensors[f"{name}.latents"], tensors[f"{name}.codes"].split(case["sizes"])[rank]
        own = latents.split(case["rows"])[rank]
        version = shard._version
        options = dict(metric=case["metric"], backend=case["backend"])
        for kind, rows, replicated in (("replicated", latents, True), ("own", own, False)):
            distances, indices = sharded_nearest_codes(rows, shard, case["k"], replicated=replicated, **options)
            vectors = gather_sharded_codes(indices, shard, replicated=replicated)
            result = {"distances": distances, "indices": indices, "vectors": vectors.contiguous()}
            for part, tensor in result.items():
                earlier = found.setdefault(f"{name}.{kind}.{part}", tensor)
                assert torch.equal(earlier.view(torch.uint8), tensor.view(torch.uint8)), (name, kind, part)
        assert shard._version == version, "the caller's codes count as changed"
save_file(found, f"{folder}/rank{rank}.safetensors")

# Leading dimensions, masked indices, and a group of some of the ranks only, in which ranks have other numbers.
codes = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
latents = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2)).transpose(0, 1)
members = [0, ranks - 1]
group = dist.new_group(members)
if rank in members:
    shard = codes.split([20, 10])[members.index(rank)]
    for replicated in (True, False):
        distances, indices = sharded_nearest_codes(latents, shard, 2, group=group, replicated=replicated)
        assert torch.equal(indices, nearest_codes(latents, codes, 2)[1])
        indices[0, 0, 0] = -1
        vectors = gather_sharded_codes(indices, shard, group=group, replicated=replicated)
        assert torch.equal(vectors[0, 0, 0], torch.zeros(3))
        assert torch.equal(vectors.flatten(0, 2)[1:], codes[indices.flatten()[1:]])
else:
    try:
        sharded_nearest_codes(latents, codes, group=group)
        raise AssertionError("searched in a group without this process")
    except ValueError as error:
        assert "group" in str(error)

# No N x K matrix, nor a tenth of one.
import resource
latents, shard = torch.randn(8192, 8, generator=torch.Generator().manual_seed(3)), torch.randn(65536 // ranks, 8)
for replicated in (True, False):
    sharded_nearest_codes(latents[:8], shard, replicated=replicated)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sharded_nearest_codes(latents, shard, replicated=replicated)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 8192 * 65536 * 4 / 10
dist.barrier()
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""

_FAULTS = """
import os, pytest

good = dict(latents=torch.ones(4, 3), codes=torch.arange(6.0).reshape(2, 3), k=1)

def search(**change):
    return sharded_nearest_codes(**{**good, **change})

# What one rank does wrong: its own error there, and one that names the rank on the other, at once.
for change, error, words in [
    (dict(k=0), ValueError, "k: .*0"),
    (dict(k=9), ValueError, "k: .*9"),
    (dict(k=True), TypeError, "k: .*True"),
    (dict(metric="dot"), ValueError, "metric.*dot"),
    (dict(precision="sloppy"), ValueError, "precision.*sloppy"),
    (dict(replicated=1), TypeError, "replicated.*1"),
    (dict(backend="abacus"), RuntimeError, "abacus"),
    (dict(codes=torch.zeros(3)), ValueError, "codes.*3"),
    (dict(codes=[1.0]), TypeError, "codes.*list"),
    (dict(latents=torch.zeros(4, 5)), ValueError, "latents.*3.*5"),
    (dict(latents=torch.zeros(4, 3).half()), TypeError, "latents.*float32.*float16"),
]:
    with pytest.raises(error if rank else RuntimeError, match=words if rank else r"group: .*\\[1\\]"):
        search(**change if rank else {})

# What differs between ranks, or is wrong on all: the same error on all.
for change, words in [
    (dict(k=1 + rank), r"k: .*every rank, got \\[1, 2\\]"),
    (dict(k=5), "k: .*4, got 5"),
    (dict(metric=("l2", "cosine")[rank]), "metric: .*every rank, got .*'l2', 'cosine'"),
    (dict(replicated=bool(rank)), r"replicated: .*\\[False, True\\]"),
    (dict(latents=torch.ones(4 + rank, 3)), r"latents: .*\\[4, 5\\]"),
    (dict(latents=torch.ones(4, 3) + rank), "latents: .*same bits"),
    (dict(latents=torch.ones(4, 3 + rank), codes=torch.ones(2, 3 + rank)), r"codes: .*last dimension.*\\[3, 4\\]"),
    ({name: good[name].to((torch.half, torch.double)[rank]) for name in ("latents", "codes")}, "codes: .*dtype.*float16.*float64"),
    (dict(codes=torch.ones(0, 3)), "codes: .*none"),
]:
    with pytest.raises(ValueError, match=words):
        search(**change)

for indices, replicated in ((torch.tensor([0, 4]), True), (torch.tensor([0, 4 * rank]), False)):
    with pytest.raises(IndexError, match=r"indices: .*K = 4, got 0\\.\\.4"):
        gather_sharded_codes(indices, good["codes"], replicated=replicated)
with pytest.raises(TypeError if rank else RuntimeError, match="indices.*int64" if rank else r"\\[1\\]"):
    gather_sharded_codes(torch.tensor([0.5 if rank else 0]), good["codes"])

# No fault has left the ranks out of step.
assert torch.equal(search()[1], torch.zeros(4, 1, dtype=torch.int64))

# A rank that never calls: the other one waits for no longer than the group allows.
dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2), dist.group.WORLD)
start = time.monotonic()
if rank == 0:
    with pytest.raises(RuntimeError):
        search()
    assert 1 < time.monotonic() - start < 60
    open(f"{folder}/raised", "w").close()
while not os.path.exists(f"{folder}/raised") and time.monotonic() - start < 60:
    time.sleep(0.1)
# A group in which a call timed out may end a process that leaves in good order.
os._exit(0)
"""


def run_ranks(folder, program, ranks):
    """Run the program on so many ranks; any that fails fails the test, with its errors."""
    (folder / "program.py").write_text(_START + program)
    command = [sys.executable, str(folder / "program.py"), str(folder)]
    processes = [subprocess.Popen([*command, str(r), str(ranks)], stderr=subprocess.PIPE, text=True) for r in range(ranks)]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)


def random_case(n, size, dim, k=1, metric="l2", dtype=torch.float32, **options):
    return dict(latents=torch.randn(n, dim).to(dtype), codes=torch.randn(size, dim).to(dtype), k=k, metric=metric, **options)


def make_cases():
    torch.manual_seed(0)
    cases = {
        "no rows": random_case(0, 5, 4, k=2),
        "one row": random_case(1, 9, 1, k=3),
        "one code": random_case(5, 1, 7),
        "more codes than rows": random_case(64, 257, 37, k=8),
        "more rows than codes": random_case(129, 65, 8),
        "five of a shard of two": random_case(40, 33, 3, k=5),
        "the reference": random_case(33, 47, 9, k=5, backend="reference"),
        "half": random_case(33, 130, 24, k=3, dtype=torch.float16),
        "bfloat16": random_case(150, 40, 5, k=3, dtype=torch.bfloat16),
        "double": random_case(33, 130, 11, k=4, dtype=torch.float64),
        "cosine": random_case(70, 90, 13, k=5, metric="cosine"),
        "cosine in double": random_case(70, 30, 6, k=2, metric="cosine", dtype=torch.float64),
    }
    # Integers: exact ties and duplicates, within shards and across.
    for metric in ("l2", "cosine"):
        table = torch.randint(-1, 2, (60, 3)).float()
        cases[f"ties, {metric}"] = dict(latents=torch.randint(-2, 3, (90, 3)).float(), codes=table, k=5, metric=metric)
    base = random_case(80, 50, 24, k=6)
    cases["duplicates"] = base | dict(codes=base["codes"][torch.arange(200) % 50])
    cases["all equal"] = base | dict(codes=base["codes"][:1].repeat(20, 1), k=4)
    cases["offset"] = base | dict(latents=base["latents"] + 1000, codes=torch.randn(150, 24) + 1000)
    # Squared distances 16785410 and 16785409.81: equal in float32, and the nearer one is in a later shard.
    cases["equal in float32"] = dict(latents=torch.zeros(3, 2), codes=torch.tensor([[4097, 1.0]] * 4 + [[4097, 0.9]] * 2), k=2)
    far, cosine = random_case(30, 40, 8, k=2), random_case(40, 30, 5, k=4, metric="cosine")
    far["codes"][37] *= 1e9
    cases["a code far away"] = far
    cosine["codes"][[2, 29]] = cosine["latents"][[3, 8]] = 0
    cases["zero vectors"] = cosine
    # Similarities so small that they are lost in 1 - similarity.
    cases["almost orthogonal"] = dict(
        latents=torch.tensor([[1.0, 0]] * 5, dtype=torch.float64),
        codes=torch.tensor([[i * 1e-18, 1.0] for i in range(12)], dtype=torch.float64), k=3, metric="cosine",
    )  # fmt: skip
    for metric in ("l2", "cosine"):
        case = random_case(30, 21, 4, k=5, metric=metric)
        case["latents"][4, 1], case["latents"][29, 0] = torch.nan, torch.inf
        case["codes"][0], case["codes"][11, 2], case["codes"][20, 3] = torch.nan, torch.inf, torch.nan
        cases[f"not finite, {metric}"] = case
        cases[f"few finite, {metric}"] = case | dict(codes=case["codes"].index_fill(0, torch.arange(1, 19), torch.nan))
    cases["beyond float64"] = random_case(6, 12, 3, k=4, dtype=torch.float64)
    cases["beyond float64"]["latents"] *= 1e200
    cases["beyond float64"]["codes"][:9] = torch.inf
    return cases


def parts(total, ranks, turn):
    """Uneven parts of so many things for so many ranks, some of them small or empty."""
    small = min(2, total)
    sizes = [small, total - small] if ranks == 2 else [(total - small) // 3, small, total - small - (total - small) // 3]
    return sizes[turn % ranks :] + sizes[: turn % ranks]


CASES = make_cases()


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def found(request, tmp_path_factory):
    """What each rank found in every case, by name."""
    folder, tensors, settings = tmp_path_factory.mktemp("ranks"), {}, {}
    for turn, (name, case) in enumerate(CASES.items()):
        tensors |= {f"{name}.{part}": case[part].contiguous() for part in ("latents", "codes")}
        sizes, rows = parts(len(case["codes"]), request.param, turn), parts(len(case["latents"]), request.param, turn + 1)
        settings[name] = dict(k=case["k"], metric=case.get("metric", "l2"), backend=case.get("backend"), sizes=sizes, rows=rows)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "cases.safetensors")
    (folder / "cases.json").write_text(json.dumps(settings))
    run_ranks(folder, _SEARCH, request.param)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(request.param)]


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype and torch.equal(found.view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", CASES)
def test_many_ranks_find_what_one_finds(found, name):
    case = CASES[name]
    options = dict(metric=case.get("metric", "l2"), backend=case.get("backend"))
    distances, indices = nearest_codes(case["latents"], case["codes"], case["k"], **options)
    own = {part: torch.cat([rank[f"{name}.own.{part}"] for rank in found]) for part in ("distances", "indices", "vectors")}
    answers = [own] + [{part: rank[f"{name}.replicated.{part}"] for part in own} for rank in found]
    for answer in answers:
        assert answer["indices"].dtype == torch.int64 and torch.equal(answer["indices"], indices)
        assert_same_bits(answer["distances"], own["distances"])
        assert_same_bits(answer["vectors"], case["codes"][indices])
        rounding = 4 * torch.finfo(distances.dtype).eps
        torch.testing.assert_close(answer["distances"], distances, rtol=rounding, atol=rounding, equal_nan=True)


def test_float32_could_not_have_told_them_apart():
    distances, indices = nearest_codes(**CASES["equal in float32"])
    assert indices.tolist() == [[4, 5]] * 3
    assert (nearest_codes(CASES["equal in float32"]["latents"], CASES["equal in float32"]["codes"][:4], 2)[0] == distances).all()


def test_faults_reach_all_ranks(tmp_path):
    run_ranks(tmp_path, _FAULTS, 2)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_without_a_group_it_is_the_search_of_one_rank(metric):
    latents, codes = torch.randn(3, 7, 5), torch.randn(19, 5, requires_grad=True)
    expected = nearest_codes(latents, codes, 4, metric=metric)
    distances, indices = sharded_nearest_codes(latents, codes, 4, metric=metric)
    assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])
    indices[1, 2, 0] = -1
    vectors = gather_sharded_codes(indices, codes)
    assert torch.equal(vectors, codes.detach()[indices].where((indices >= 0)[..., None], 0.0))
    assert not vectors.requires_grad


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(indices=torch.tensor([3])), IndexError, "indices: .*K = 3, got 3..3"),
        (dict(indices=torch.tensor([-2, 1])), IndexError, "indices: .*got -2..1"),
        (dict(indices=torch.tensor([1.0])), TypeError, "indices: .*int64.*float32"),
        (dict(indices=[1]), TypeError, "indices: .*list"),
        (dict(codes=torch.zeros(3)), ValueError, "codes: .*3"),
        (dict(codes=torch.zeros(3, 2, dtype=torch.int64)), TypeError, "codes: .*int64"),
        (dict(replicated=None), TypeError, "replicated: .*None"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        gather_sharded_codes(**dict(indices=torch.tensor([0]), codes=torch.zeros(3, 4)) | change)
