"""What does not fit is refused in words, by every operator; a row of NaN or infinity is answered as documented and changes no other."""

import pytest
import torch

from vqkit import ops

ROWS, CODES, INDICES = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)
GRAPH = ops.Graph.from_edges([[0, 1]], 3)

# Each operator as a function of what is changed in a good call, by the names of its arguments.
CALLS = {
    "nearest_codes": lambda latents=ROWS, codes=CODES, k=2: ops.nearest_codes(latents, codes, k),
    "nearest_code": lambda latents=ROWS, codes=CODES: ops.nearest_code(latents, codes),
    "nearest_row": lambda latents=ROWS, codes=CODES, mask=None: ops.nearest_row(latents, codes, mask=mask),
    "sharded_nearest_codes": lambda latents=ROWS, codes=CODES, k=2: ops.sharded_nearest_codes(latents, codes, k),
    "gather_sharded_codes": lambda indices=INDICES, codes=CODES: ops.gather_sharded_codes(indices, codes),
    "straight_through": lambda latents=ROWS, codes=CODES, indices=INDICES: ops.straight_through(latents, codes, indices),
    "code_statistics": lambda latents=ROWS, indices=INDICES, size=5, per_head=False: ops.code_statistics(latents, indices, size, per_head=per_head),
    "code_counts": lambda indices=INDICES, size=5: ops.code_counts(indices, size),
    "ema_update": lambda average=ROWS, batch=ROWS: ops.ema_update(average, batch, 0.5),
    "aggregate": lambda graph=GRAPH, features=ROWS: ops.aggregate(graph, features),
}
SEARCHES = ("nearest_codes", "nearest_code", "nearest_row", "sharded_nearest_codes")
WITH_CODES = (*SEARCHES, "straight_through")
WITH_LATENTS = (*WITH_CODES, "code_statistics")
WITH_INDICES = ("straight_through", "code_statistics", "code_counts", "gather_sharded_codes")


def cases():
    for name in WITH_LATENTS:
        yield name, {"latents": ROWS.long()}, TypeError, "latents: expected a floating-point tensor.*got torch.int64"
        yield name, {"latents": ROWS.to(torch.complex64)}, TypeError, "latents: expected a floating-point tensor.*complex64"
        yield name, {"latents": torch.tensor(1.0)}, ValueError, r"latents: expected a last dimension of at least 1, got shape \(\)"
        yield name, {"latents": ROWS[:, :0]}, ValueError, r"latents: expected a last dimension of at least 1, got shape \(3, 0\)"
        yield name, {"latents": [[1.0]]}, TypeError, "latents: expected a tensor, got list"
    for name in WITH_CODES:
        yield name, {"latents": ROWS[:, :3]}, ValueError, "latents: expected last dimension 4 as in codes, got 3"
        yield name, {"latents": ROWS.double()}, TypeError, "latents: expected torch.float32 as in codes, got torch.float64"
        yield name, {"latents": ROWS.to("meta")}, ValueError, "latents: expected device cpu as in codes, got meta"
        yield name, {"codes": CODES[0]}, ValueError, r"codes: expected shape \(K, D\).*got \(4,\)"
        yield name, {"codes": CODES[None, None]}, ValueError, r"codes: expected shape \(K, D\).*got \(1, 1, 5, 4\)"
        yield name, {"codes": CODES.int()}, TypeError, "codes: expected a floating-point tensor.*got torch.int32"
        yield name, {"codes": CODES[:0]}, ValueError, r"codes: expected shape \(K, D\) with K >= 1.*got \(0, 4\)"
    for name in ("nearest_row", "sharded_nearest_codes", "straight_through"):
        yield name, {"codes": CODES[None]}, ValueError, r"codes: expected shape \(K, D\) with K >= 1, got \(1, 5, 4\)"
    for name in ("nearest_codes", "nearest_code"):
        tables = CODES.expand(2, 5, 4)
        yield name, {"codes": tables}, ValueError, r"latents: expected shape \(2, ..., D\), a head for each in codes, got \(3, 4\)"
        yield name, {"codes": tables, "latents": ROWS[0]}, ValueError, r"latents: expected shape \(2, ..., D\).*got \(4,\)"
        yield name, {"codes": tables[:0]}, ValueError, r"codes: expected shape .*\(H, K, D\) with H >= 1, got \(0, 5, 4\)"
        yield name, {"codes": tables[:, :0]}, ValueError, r"codes: expected shape .*got \(2, 0, 4\)"
    yield "nearest_codes", {"codes": CODES.expand(3, 5, 4), "k": 6}, ValueError, r"k: expected 1 <= k <= min\(K, 8\) = 5, got 6"
    for name in WITH_INDICES:
        yield name, {"indices": INDICES.int()}, TypeError, "indices: expected an int64 tensor, got torch.int32"
        yield name, {"indices": INDICES.bool()}, TypeError, "indices: expected an int64 tensor, got torch.bool"
        yield name, {"indices": INDICES + 5}, IndexError, r"indices: .*= 5, got 5\.\.5"
        yield name, {"indices": INDICES - 2}, IndexError, r"indices: .*= 5, got -2\.\.-2"
    for name in ("straight_through", "code_statistics"):
        yield name, {"indices": INDICES[:2]}, ValueError, r"indices: expected shape \(3,\), got \(2,\)"
        yield name, {"indices": INDICES.to("meta")}, ValueError, "indices: expected device cpu as in latents, got meta"
    yield "gather_sharded_codes", {"indices": INDICES.to("meta")}, ValueError, "indices: expected device cpu as in codes, got meta"
    for name in ("code_statistics", "code_counts"):
        yield name, {"size": 0}, ValueError, "codebook_size: expected at least 1, got 0"
        yield name, {"size": 5.0}, TypeError, "codebook_size: expected an int, got 5.0"
    yield "code_statistics", {"per_head": True, "latents": ROWS[0], "indices": INDICES[0]}, ValueError, r"latents: .*\(H, ..., D\).*got \(4,\)"
    yield "code_statistics", {"per_head": True, "latents": ROWS[:0], "indices": INDICES[:0]}, ValueError, r"latents: .*H >= 1, got \(0, 4\)"
    yield "nearest_row", {"mask": torch.ones(3, dtype=torch.bool, device="meta")}, ValueError, "mask: expected device cpu as in latents, got meta"
    yield "nearest_row", {"mask": torch.ones(3, 1, dtype=torch.bool)}, ValueError, r"mask: expected shape \(3,\).*got \(3, 1\)"
    yield "ema_update", {"average": ROWS.long()}, TypeError, "average: expected a floating-point tensor, got torch.int64"
    yield "ema_update", {"batch": ROWS[:1]}, ValueError, r"batch: expected shape \(3, 4\) as in average, got \(1, 4\)"
    yield "ema_update", {"batch": ROWS.to("meta")}, ValueError, "batch: expected device cpu as in average, got meta"
    yield "ema_update", {"batch": 1.0}, TypeError, "batch: expected a tensor, got float"
    yield "aggregate", {"graph": ROWS}, TypeError, "graph: expected a Graph, got Tensor"
    yield "aggregate", {"features": ROWS.long()}, TypeError, "features: expected a floating-point tensor.*got torch.int64"
    yield "aggregate", {"features": ROWS[0]}, ValueError, r"features: expected shape \(3, F\).*got \(4,\)"
    yield "aggregate", {"features": ROWS[:2]}, ValueError, r"features: expected shape \(3, F\).*got \(2, 4\)"
    yield "aggregate", {"features": ROWS[:, :0]}, ValueError, r"features: expected a last dimension of at least 1, got shape \(3, 0\)"
    yield "aggregate", {"features": ROWS.to("meta")}, ValueError, "graph: expected device meta as in features, got cpu"


@pytest.mark.parametrize("name", CALLS)
def test_what_fits_is_computed(name):
    CALLS[name]()


@pytest.mark.parametrize("name, change, error, words", list(cases()))
def test_refused_in_words(name, change, error, words):
    with pytest.raises(error, match=words):
        CALLS[name](**change)


BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_row_that_is_not_finite_changes_no_other_search(backend, device, metric, dtype, value):
    latents, codes = torch.randn(2, 40, 5).to(device, dtype), torch.randn(2, 9, 5).to(device, dtype)
    clean = ops.nearest_codes(latents, codes, 3, metric=metric, backend=backend)
    latents[1, 7, 2] = value
    distances, indices = ops.nearest_codes(latents, codes, 3, metric=metric, backend=backend)
    assert indices[1, 7].tolist() == [0, 1, 2] and distances[1, 7].isnan().all()
    other = torch.ones(2, 40, dtype=torch.bool)
    other[1, 7] = False
    assert torch.equal(distances[other], clean[0][other]) and torch.equal(indices[other], clean[1][other])


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_row_that_is_not_finite_is_nobodys_nearest(backend, device, value):
    latents, codes = torch.randn(30, 4, device=device), torch.randn(7, 4, device=device)
    latents[3, 1] = value
    left = torch.arange(30, device=device) != 3
    rows = ops.nearest_row(latents, codes, backend=backend)
    assert torch.equal(rows, ops.nearest_row(latents.nan_to_num(0), codes, mask=left, backend=backend))
    codes[2, 0] = value
    found = ops.nearest_row(latents, codes, backend=backend)
    assert found[2] == -1 and torch.equal(found[codes.isfinite().all(1)], rows[codes.isfinite().all(1)])


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_row_that_is_not_finite_reaches_the_sum_of_its_code_only(backend, device, value):
    latents, indices = torch.randn(50, 6, device=device), torch.randint(8, (50,), device=device)
    clean, counts = ops.code_statistics(latents, indices, 8, backend=backend)
    latents[11, 2] = value
    sums, again = ops.code_statistics(latents, indices, 8, backend=backend)
    touched = torch.zeros(8, 6, dtype=torch.bool, device=device)
    touched[indices[11], 2] = True
    assert torch.equal(counts, again) and torch.equal(sums[~touched], clean[~touched]) and not sums[touched].isfinite().any()
    indices[11] = -1
    assert ops.code_statistics(latents, indices, 8, backend=backend)[0].isfinite().all()


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_a_row_that_is_not_finite_has_gradients_of_its_own_only(backend, device, gradient, value):
    latents, codes = torch.randn(20, 5, device=device), torch.randn(6, 5, device=device)
    indices = torch.arange(20, device=device) % 6
    results = []
    for bad in (False, True):
        x, c = latents.clone(), codes.clone().requires_grad_()
        if bad:
            x[9, 1] = value
        x.requires_grad_()
        quantized, commitment, codebook = ops.straight_through(x, c, indices, gradient=gradient, backend=backend)
        (quantized.square().sum() + commitment + codebook).backward()
        results.append((quantized, x.grad, c.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[1][0], codes[indices])
    assert torch.equal(results[0][1][indices != 3], results[1][1][indices != 3])
    rows = torch.arange(20, device=device) != 9
    assert torch.equal(results[0][1][rows], results[1][1][rows])
    others = torch.arange(6, device=device) != indices[9]
    assert torch.equal(results[0][2][others], results[1][2][others])


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_node_that_is_not_finite_reaches_its_neighbours_only(backend, device, value):
    graph = ops.Graph.from_edges([[0, 1], [1, 2], [3, 4]], 5).to(device)
    features = torch.randn(5, 3, device=device)
    clean = ops.aggregate(graph, features, backend=backend)
    features[0, 1] = value
    found = ops.aggregate(graph, features, backend=backend)
    touched = torch.zeros(5, 3, dtype=torch.bool, device=device)
    touched[:2, 1] = True
    assert torch.equal(found[~touched], clean[~touched]) and not found[touched].isfinite().any()
