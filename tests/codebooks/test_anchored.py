"""CVQ: use and anchors against their formulas, draws against their distribution, one rank against two."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

import vqkit
from vqkit.codebooks import AnchoredCodebook, accumulate
from vqkit.codebooks.anchored import draw_near_rows

ANCHORS = ["closest", "random", "probrandom"]


@pytest.mark.parametrize("cosine", [False, True])
def test_closest_follows_the_published_formula(cosine):
    codebook = AnchoredCodebook(6, 3, decay=0.9, cosine=cosine)
    codes, use = codebook.codes.detach().double().clone(), torch.zeros(6, dtype=torch.float64)
    for _ in range(4):
        latents = torch.randn(40, 3)
        latents = normalize(latents, dim=-1) if cosine else latents
        indices = torch.randint(0, 3, (40,))
        indices[:5] = -1
        codebook.observe(latents, indices)
        kept = latents[5:].double()
        use = 0.9 * use + 0.1 * torch.bincount(indices[5:], minlength=6) / 35
        closeness = normalize(codes, dim=-1) @ kept.T if cosine else -torch.cdist(codes, kept)
        alpha = torch.exp(-use * 6 * 10 / (1 - 0.9) - 1e-3)[:, None]
        codes = codes * (1 - alpha) + kept[closeness.argmax(-1)] * alpha
    torch.testing.assert_close(codebook.codes.detach().double(), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codebook.cluster_size.double(), use, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_unused_codes_move_to_latents_and_used_ones_stay(anchor):
    codebook = AnchoredCodebook(8, 2, anchor=anchor)
    before = codebook.codes.detach().clone()
    latents = torch.randn(50, 2) + 4
    codebook.observe(latents, torch.arange(50) % 4)
    moved = codebook.codes.detach()
    assert (torch.cdist(moved[4:], latents).amin(-1) < 0.02).all()
    assert ((moved - before)[:4].norm(dim=-1) < 1e-3).all()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("chunk", [2**22, 30])
def test_draws_have_the_probabilities_of_the_softmax(cosine, chunk, monkeypatch):
    monkeypatch.setattr("vqkit.codebooks.anchored._CHUNK", chunk)
    latents, codes, valid = torch.randn(7, 2), torch.randn(3, 2), torch.tensor([1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    latents[2] = torch.nan
    scores = normalize(codes, dim=-1) @ normalize(latents, dim=-1).T if cosine else -torch.cdist(codes, latents).square()
    expected = scores.masked_fill(~valid, -torch.inf).softmax(-1)
    draws = torch.stack([draw_near_rows(latents, codes, valid, cosine)[0] for _ in range(4000)])
    found = torch.stack([(draws == row).float().mean(0) for row in range(7)], -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.04)
    assert not found[:, ~valid].any()


@pytest.mark.parametrize("cosine", [False, True])
def test_the_mass_of_a_draw_compares_ranks(cosine):
    latents, codes, valid = torch.randn(9, 2) + 300, torch.randn(4, 2) + 300, torch.ones(9, dtype=torch.bool)
    masses = [draw_near_rows(latents, codes, valid & keep, cosine)[1] for keep in (torch.arange(9) < 4, torch.arange(9) >= 4)]
    wide = latents.double(), codes.double()
    scores = normalize(wide[1], dim=-1) @ normalize(wide[0], dim=-1).T if cosine else -torch.cdist(*wide[::-1]).square()
    expected = scores.softmax(-1)[:, :4].sum(-1)
    torch.testing.assert_close(torch.stack(masses).softmax(0)[0], expected, rtol=1e-3, atol=1e-3)
    rows, mass = draw_near_rows(latents, codes, ~valid, cosine)
    assert (rows == -1).all() and (mass == -torch.inf).all()


@pytest.mark.parametrize("anchor", ANCHORS)
def test_all_codes_come_into_use(anchor):
    torch.manual_seed(2)
    plain = vqkit.Quantizer(4, 64, codebook="learned")
    quantizer = vqkit.Quantizer(4, 64, codebook=AnchoredCodebook(64, 4, anchor=anchor, decay=0.9))
    for model in (plain, quantizer):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(60):
            result = model(torch.randn(256, 4) + 5)
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
        model.eval()
    x = torch.randn(2000, 4) + 5
    assert quantizer(x).usage > 4 * plain(x).usage and quantizer(x).loss < plain(x).loss / 4


@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_call_that_is_frozen_or_has_nothing_valid_changes_nothing(anchor):
    quantizer = vqkit.Quantizer(4, 8, codebook=AnchoredCodebook(8, 4, anchor=anchor))
    quantizer(torch.randn(20, 4))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(20, 4), torch.zeros(20, dtype=torch.bool))
    quantizer(torch.randn(0, 4))
    quantizer.eval()(torch.randn(20, 4))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("anchor", ANCHORS)
def test_rows_that_are_not_finite_are_never_anchors(anchor):
    quantizer = vqkit.Quantizer(4, 8, codebook=AnchoredCodebook(8, 4, anchor=anchor))
    x = torch.randn(60, 4)
    x[::3, 1], x[1::3, 2] = torch.nan, torch.inf
    for _ in range(3):
        quantizer(x)
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@pytest.mark.parametrize("anchor", ANCHORS)
def test_first_batch_moves_once(anchor):
    codebook = AnchoredCodebook(8, 2, anchor=anchor, first_batch=True)
    nothing = torch.full((50,), -1)
    codebook.observe(torch.randn(50, 2), nothing)
    assert not codebook.moved
    codebook.observe(torch.randn(50, 2) + 9, torch.zeros(50, dtype=torch.int64))
    started = codebook.codes.detach().clone()
    assert codebook.moved and (started[1:] > 4).all()
    restored = AnchoredCodebook(8, 2, anchor=anchor, first_batch=True)
    restored.load_state_dict(codebook.state_dict())
    for book in (codebook, restored):
        use = book.cluster_size.clone()
        book.observe(torch.randn(50, 2) - 9, torch.zeros(50, dtype=torch.int64))
        assert torch.equal(book.codes, started) and not torch.equal(book.cluster_size, use)


def test_gradients_are_those_of_a_learned_codebook():
    quantizer = vqkit.Quantizer(4, 8, codebook=AnchoredCodebook(8, 4))
    twin = vqkit.Quantizer(4, 8, codebook="learned")
    twin.codebook.codes.data.copy_(quantizer.codebook.codes.data)
    x = torch.randn(20, 4)
    quantizer(x).loss.backward(), twin(x).loss.backward()
    assert torch.equal(quantizer.codebook.codes.grad, twin.codebook.codes.grad)
    assert not torch.equal(quantizer.codebook.codes, twin.codebook.codes)


def test_a_step_leaves_an_earlier_graph_alone():
    codebook = AnchoredCodebook(8, 4)
    kept = codebook.eval()().square().sum()
    codebook.train().observe(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))
    kept.backward()


def test_micro_batches_count_together():
    whole = AnchoredCodebook(8, 4, decay=0.5)
    parts = copy.deepcopy(whole)
    latents, indices = torch.randn(40, 4), torch.arange(40) % 5
    whole.observe(latents, indices)
    with accumulate(parts):
        parts.observe(latents[:30], indices[:30])
    assert not parts.cluster_size.any()
    parts.observe(latents[30:], indices[30:])
    torch.testing.assert_close(parts.cluster_size, whole.cluster_size)
    again = copy.deepcopy(parts)
    whole.observe(latents, indices), again.observe(latents, indices)
    torch.testing.assert_close(again.cluster_size, whole.cluster_size)


def test_a_kmeans_start_gives_shares():
    codebook = AnchoredCodebook(4, 2, kmeans_init=True)
    codebook.prepare(torch.randn(50, 2) + 9, torch.ones(50, dtype=torch.bool))
    torch.testing.assert_close(codebook.cluster_size.sum(), torch.tensor(1.0))
    assert (codebook.codes > 4).all()


@pytest.mark.parametrize("anchor", ANCHORS)
def test_statistics_stay_float32(anchor):
    quantizer = vqkit.Quantizer(4, 8, codebook=AnchoredCodebook(8, 4, anchor=anchor)).to(torch.bfloat16)
    result = quantizer(torch.randn(20, 4).bfloat16())
    result.loss.backward()
    assert quantizer.codebook.cluster_size.dtype == torch.float32 and quantizer.codebook.codes.dtype == torch.bfloat16
    assert quantizer.codebook.codes.isfinite().all()


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("first_batch", [False, True])
def test_compiles_in_one_graph(anchor, first_batch):
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(4, 8, codebook=AnchoredCodebook(8, 4, anchor=anchor, first_batch=first_batch))
    twin = copy.deepcopy(quantizer)
    step = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(20, 4)
        torch.manual_seed(0)
        quantizer(x).loss.backward()
        torch.manual_seed(0)
        step(x).loss.backward()
    for name, value in quantizer.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_start(cosine):
    codes = AnchoredCodebook(50, 4, cosine=cosine).codes.detach()
    if cosine:
        torch.testing.assert_close(codes.norm(dim=-1), torch.ones(50))
    else:
        assert codes.abs().max() <= 1 / 50


_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
from vqkit.codebooks import AnchoredCodebook

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
books = {}
for name in ("closest", "random", "probrandom"):
    for cosine in (False, True):
        books[f"{name} {cosine}"] = AnchoredCodebook(6, 3, decay=0.9, anchor=name, cosine=cosine)
lonely = AnchoredCodebook(6, 3, anchor="probrandom")
generator = torch.Generator().manual_seed(1)
latents = torch.randn(5, 2, 30, 3, generator=generator)
indices = torch.randint(-1, 3, (5, 2, 30), generator=generator)
# The same seed on every rank, as many programs have it.
torch.manual_seed(7)
for rows, chosen in zip(latents, indices):
    for book in books.values():
        book.observe(rows[rank], chosen[rank])
    # Only the second rank has anything to offer.
    lonely.observe(rows[rank][: 30 * rank] + 5, chosen[rank][: 30 * rank])
books["lonely"] = lonely
# How often a rank's latent is drawn, of two that lie equally near.
drawn = []
for _ in range(400):
    pair = AnchoredCodebook(4, 1, anchor="probrandom")
    pair.observe(torch.tensor([[1.0 if rank else -1.0]]), torch.tensor([0]))
    drawn.append(pair.codes.detach()[1:])
torch.save(({name: book.state_dict() for name, book in books.items()}, torch.cat(drawn)), f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_two_ranks_equal_one(tmp_path, two_ranks):
    two_ranks(_PROGRAM)
    (first, drawn), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.manual_seed(0)
    alone = {}
    for name in ANCHORS:
        for cosine in (False, True):
            alone[f"{name} {cosine}"] = AnchoredCodebook(6, 3, decay=0.9, anchor=name, cosine=cosine)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(5, 2, 30, 3, generator=generator)
    indices = torch.randint(-1, 3, (5, 2, 30), generator=generator)
    for rows, chosen in zip(latents, indices):
        for book in alone.values():
            book.observe(rows.view(60, 3), chosen.view(60))
    for name, state in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in state.items()), f"{name}: the ranks differ"
    for name, book in alone.items():
        torch.testing.assert_close(first[name]["cluster_size"], book.cluster_size)
        if name.startswith("closest"):
            torch.testing.assert_close(first[name]["codes"], book.codes.detach(), rtol=1e-5, atol=1e-6)
        else:
            nearest = torch.cdist(first[name]["codes"][3:], latents[-1].view(60, 3)[indices[-1].view(60) >= 0]).amin(-1)
            assert (nearest < 0.02).all(), f"{name}: unused codes lie on latents of the last batch"
    assert (first["lonely"]["codes"][3:] > 1).all()
    assert 0.4 < (drawn > 0).float().mean() < 0.6


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(decay=1), "decay: .*1"),
        (dict(decay=-0.1), "decay: .*-0.1"),
        (dict(anchor="nearest"), "anchor: .*'nearest'"),
        (dict(size=0), "size: .*0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AnchoredCodebook(**{"size": 4, "dim": 2} | options)
