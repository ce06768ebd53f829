"""How each codebook learns: the moving average, k-means, dead codes that stay alive, and codes generated from words."""

import pytest
import torch

from vqkit.codebooks import EMACodebook, LearnedCodebook, TransferredCodebook
from vqkit.codebooks.kmeans import kmeans
from vqkit.codebooks.ranks import draw_latents
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
        centres, counts = kmeans(latents, valid, 7, iterations, cosine)
        errors.append(float(torch.cdist(latents, centres).amin(-1).square().mean()))
    assert errors[1] <= errors[0] and int(counts.sum()) == 120 and centres.isfinite().all()
    if cosine:
        torch.testing.assert_close(centres.norm(dim=-1), torch.ones(7))


def test_kmeans_with_fewer_latents_than_codes():
    centres, counts = kmeans(torch.randn(3, 2), torch.tensor([True, False, True]), 8, 4, False)
    assert centres.isfinite().all() and int(counts.sum()) == 2


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
