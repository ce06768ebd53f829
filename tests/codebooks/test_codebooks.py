"""How each codebook learns: the moving average, k-means, dead codes that stay alive, and codes generated from words."""

import copy

import pytest
import torch
from torch.func import functional_call

from vqkit.codebooks import EMACodebook, LearnedCodebook, TransferredCodebook
from vqkit.codebooks.kmeans import kmeans
from vqkit.codebooks.ranks import draw_distinct, draw_latents
from vqkit.ops import Graph


def test_ema_follows_its_formula():
    codebook = EMACodebook(3, 2, decay=0.9, eps=1e-5)
    latents, indices = torch.randn(10, 2), torch.tensor([0, 0, 1, 1, 1, 0, -1, 0, 1, 0])
    size, total = torch.ones(3), codebook.codes.clone()
    for _ in range(3):
        codebook.observe(latents, indices)
        for code in range(3):
            chosen = latents[indices == code]
            size[code] = 0.9 * size[code] + 0.1 * len(chosen)
            total[code] = 0.9 * total[code] + 0.1 * chosen.sum(0)
    smoothed = (size + 1e-5) / (size.sum() + 3e-5) * size.sum()
    torch.testing.assert_close(codebook.codes, total / smoothed[:, None])
    torch.testing.assert_close(codebook.cluster_size, size)


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
def test_a_replaced_code_stays_replaced(kind):
    codebook = kind(4, 2, threshold_ema_dead_code=0.5, decay=0.5)
    latents = torch.randn(6, 2)
    indices = torch.zeros(6, dtype=torch.int64)
    for _ in range(2):
        codebook.observe(latents, indices)
    dead = codebook.codes[1:].detach().clone()
    assert all(bool((row == latents).all(-1).any()) for row in dead), "dead codes become latents of the batch"
    codebook.observe(latents[:0], indices[:0])
    if kind is EMACodebook:
        torch.testing.assert_close(codebook.embed_sum[0] / codebook.cluster_size[0], codebook.codes[0].detach(), rtol=1e-3, atol=1e-3)


def test_codes_in_use_are_not_replaced():
    codebook = EMACodebook(4, 2, threshold_ema_dead_code=1)
    latents, indices = torch.randn(40, 2), torch.arange(40) % 4
    codebook.observe(latents, indices)
    without = EMACodebook(4, 2)
    assert (codebook.cluster_size > 1).all() and without.threshold_ema_dead_code == 0


def test_codes_handed_out_in_training_survive_the_update():
    codebook = EMACodebook(3, 2)
    codes = codebook()
    before = codes.clone()
    codebook.observe(torch.randn(9, 2), torch.arange(9) % 3)
    assert torch.equal(codes, before) and not torch.equal(codebook(), before)


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_lowers_the_error_and_keeps_lonely_centres(cosine):
    latents = torch.cat([torch.randn(60, 3) + 6, torch.randn(60, 3) - 6])
    valid = torch.ones(120, dtype=torch.bool)
    if cosine:
        latents = torch.nn.functional.normalize(latents, dim=-1)
    errors = []
    for iterations in (1, 10):
        torch.manual_seed(5)
        centres, counts = kmeans(latents, valid, draw_distinct(latents, valid, 7), iterations, cosine)
        errors.append(float(torch.cdist(latents, centres).amin(-1).square().mean()))
    assert errors[1] <= errors[0] and int(counts.sum()) == 120 and centres.isfinite().all()
    if cosine:
        torch.testing.assert_close(centres.norm(dim=-1), torch.ones(7))


def test_kmeans_with_fewer_latents_than_codes():
    latents, valid = torch.randn(3, 2), torch.tensor([True, False, True])
    centres, counts = kmeans(latents, valid, draw_distinct(latents, valid, 8), 4, False)
    assert centres.isfinite().all() and int(counts.sum()) == 2


def test_a_start_draws_distinct_valid_latents():
    latents = torch.arange(10.0)[:, None]
    valid = latents[:, 0] % 3 == 0
    draws = [draw_distinct(latents, valid, 3)[:, 0].tolist() for _ in range(30)]
    assert all(len(set(draw)) == 3 for draw in draws) and {row for draw in draws for row in draw} == {0, 3, 6, 9}
    assert sorted(draw_distinct(latents, valid, 10)[:, 0].unique(return_counts=True)[1].tolist()) == [2, 2, 3, 3]
    assert draw_distinct(latents, valid & False, 3) is None and draw_distinct(latents[:0], valid[:0], 3) is None


def test_as_many_latents_as_codes_start_one_code_each():
    codebook = EMACodebook(64, 8, kmeans_init=True)
    latents = torch.randn(64, 8)
    codebook.prepare(latents, torch.ones(64, dtype=torch.bool))
    assert torch.equal(codebook.codes.unique(dim=0), latents.unique(dim=0))


def test_a_centre_without_latents_stays():
    codebook = EMACodebook(64, 8, kmeans_init=True)
    latents = torch.randn(32, 8) + 3
    codebook.prepare(latents, torch.ones(32, dtype=torch.bool))
    started = codebook.codes.clone()
    assert len(started.unique(dim=0)) == 32
    indices = torch.cdist(latents, started).argmin(-1)
    for _ in range(3):
        codebook.observe(latents, indices)
        torch.testing.assert_close(codebook.codes, started, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
def test_a_start_waits_for_a_batch_with_valid_rows(kind):
    codebook = kind(4, 2, kmeans_init=True)
    before = copy.deepcopy(codebook.state_dict())
    latents, valid = torch.randn(50, 2) + 9, torch.zeros(50, dtype=torch.bool)
    for nothing in (slice(0), slice(None)):
        codebook.prepare(latents[nothing], valid[nothing])
        assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())
    codebook.prepare(latents, ~valid)
    assert codebook.initialised and (codebook.codes > 4).all()


def test_a_start_that_came_with_the_buffers_is_not_repeated():
    """DistributedDataParallel broadcasts the buffers of the one rank that loaded a checkpoint."""
    codebook = EMACodebook(4, 2, kmeans_init=True)
    before = codebook.codes.clone()
    codebook.initialised.fill_(True)
    codebook.prepare(torch.randn(50, 2), torch.ones(50, dtype=torch.bool))
    assert torch.equal(codebook.codes, before)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EMACodebook(4, 2),
        lambda: EMACodebook(4, 2, kmeans_init=True),
        lambda: LearnedCodebook(4, 2, kmeans_init=True),
        lambda: LearnedCodebook(4, 2, threshold_ema_dead_code=2),
    ],
)
def test_a_training_step_leaves_an_earlier_graph_alone(build):
    codebook = build()
    latents, weight = torch.randn(20, 2), torch.ones(4, 2, requires_grad=True)
    codes = codebook.eval()()
    (codes * weight).sum().backward(retain_graph=True)
    expected, weight.grad = weight.grad, None
    kept = (codes * weight).sum()
    codebook.train().prepare(latents, torch.ones(20, dtype=torch.bool))
    codebook.observe(latents, torch.zeros(20, dtype=torch.int64))
    kept.backward()
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
def test_loading_by_assignment_keeps_float32_statistics(kind):
    codebook = kind(4, 2)
    state = {name: value.bfloat16() if value.is_floating_point() else value for name, value in codebook.state_dict().items()}
    codebook.load_state_dict(state, assign=True)
    assert {value.dtype for value in codebook.buffers() if value.is_floating_point()} == {torch.float32}
    assert torch.equal(codebook.cluster_size, state["cluster_size"].float())
    codebook.observe(torch.randn(9, 2), torch.arange(9) % 4)


def test_only_valid_rows_are_drawn():
    latents = torch.arange(10.0)[:, None]
    rows, drawn = draw_latents(latents, latents[:, 0] % 3 == 0, 500)
    assert set(rows[:, 0].tolist()) == {0, 3, 6, 9} and drawn.all()
    for nothing in (latents[:0], latents):
        rows, drawn = draw_latents(nothing, torch.zeros(len(nothing), dtype=torch.bool), 4)
        assert rows.shape == (4, 1) and not drawn.any() and not rows.any()


def test_kmeans_start_happens_once_and_is_remembered():
    codebook = EMACodebook(4, 2, kmeans_init=True)
    first, valid = torch.randn(50, 2) + 9, torch.ones(50, dtype=torch.bool)
    codebook.prepare(first, valid)
    started = codebook.codes.clone()
    assert (started > 4).all() and int(codebook.cluster_size.sum()) == 50
    codebook.prepare(-first, valid)
    assert torch.equal(codebook.codes, started)
    restored = EMACodebook(4, 2, kmeans_init=True)
    restored.load_state_dict(codebook.state_dict())
    restored.prepare(-first, valid)
    assert torch.equal(restored.codes, started)


class Neighbours(torch.nn.Module):
    """The smallest transfer network: one aggregation and one linear map."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.out_dim = 2

    def forward(self, features, graph):
        from vqkit.ops import aggregate

        return self.linear(aggregate(graph, features))


def test_transferred_codebook_keeps_its_words_and_graph_in_the_state():
    graph = Graph.from_edges([[0, 1], [1, 2]], 4)
    codebook = TransferredCodebook(torch.randn(4, 3), Neighbours(), graph)
    twin = TransferredCodebook(torch.zeros(4, 3), Neighbours(), graph)
    twin.load_state_dict(codebook.state_dict())
    assert torch.equal(twin(), codebook()) and not codebook.word_vectors.requires_grad
    with pytest.raises(ValueError, match="graph: .*5 words.*4 nodes"):
        TransferredCodebook(torch.randn(5, 3), Neighbours(), graph)
    with pytest.raises(ValueError, match="word_vectors"):
        TransferredCodebook(torch.zeros(4, 3, dtype=torch.int64), Neighbours(), graph)


def test_transferred_codebook_in_eval_mode_follows_its_parameters():
    codebook = TransferredCodebook(torch.randn(4, 3), Neighbours(), Graph.from_edges([[0, 1]], 4)).eval()
    first = codebook()
    assert codebook() is first and not first.requires_grad
    other = TransferredCodebook(torch.randn(4, 3), Neighbours(), Graph.from_edges([[0, 1]], 4))
    codebook.load_state_dict(other.state_dict())
    assert torch.equal(codebook(), other.eval()()), "loading makes the cached codes stale"
    assert codebook.double()().dtype == torch.float64


def transferred():
    return TransferredCodebook(torch.randn(4, 3), Neighbours(), Graph.from_edges([[0, 1], [1, 2]], 4)).eval()


def fresh(codebook):
    with torch.no_grad():
        return codebook.network(codebook.word_vectors, codebook.graph)


@pytest.mark.parametrize("name", ["word_vectors", "graph_weights", "network.linear.bias"])
def test_transferred_codebook_in_eval_mode_follows_all_it_comes_from(name):
    codebook = transferred()
    before = codebook()
    with torch.no_grad():
        codebook.state_dict()[name].mul_(3)
    assert torch.equal(codebook(), fresh(codebook)) and not torch.equal(codebook(), before)


def test_transferred_codebook_forgets_when_told():
    codebook = transferred()
    for tell in (codebook.eval, lambda: codebook.load_state_dict(codebook.state_dict())):
        codebook()
        for parameter in codebook.parameters():
            parameter.data.mul_(2)
        tell()
        assert torch.equal(codebook(), fresh(codebook))


def test_transferred_codebook_is_not_misled_by_tensors_that_come_and_go():
    codebook = transferred()
    for step in range(50):
        swapped = {f"network.{name}": torch.full_like(p, 0.1 * step) for name, p in codebook.network.named_parameters()}
        bare = {name.removeprefix("network."): p for name, p in swapped.items()}
        with torch.no_grad():
            expected = functional_call(codebook.network, bare, (codebook.word_vectors, codebook.graph))
            assert torch.equal(functional_call(codebook, swapped, ()), expected)
    assert torch.equal(codebook(), fresh(codebook))


def test_transferred_codebook_used_in_inference_mode_serves_a_later_backward_pass():
    codebook = transferred()
    with torch.inference_mode():
        codebook()
        made_there = transferred()
        assert torch.equal(made_there(), fresh(made_there))
    weight = torch.ones(4, 2, requires_grad=True)
    (codebook() * weight).sum().backward()
    assert torch.equal(weight.grad, codebook())
