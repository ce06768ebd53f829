"""VQCT: which codes a selection moves, the words, and the codebook that is kept in eval mode."""

import copy

import pytest
import torch

from vqkit.models import create
from vqkit.nn import GraphTransfer


def movement(model, part, index):
    """How far each code of every part moves when one code alone is pulled by the loss, as in fig. 3 of the paper."""
    parameters = [p for p in model.quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    quantizer = model.quantizer
    codes = quantizer.codes if isinstance(quantizer.codes, tuple) else (quantizer.codes,)
    before = [c.detach().clone() for c in codes]
    (codes[part][index] - 1).square().sum().backward()
    optimizer.step()
    after = quantizer.codes if isinstance(quantizer.codes, tuple) else (quantizer.codes,)
    return [(a - b).norm(dim=1) for a, b in zip(after, before, strict=True)]


def test_one_selected_code_moves_all_of_vqct_and_only_itself_in_vqgan(build):
    # without dropout, so that codes differ by learning alone
    adjectives, nouns = movement(build("vqct", dropout=0.0), 0, 2)
    assert (adjectives > 1e-4).all()
    assert (nouns > 1e-4).all()

    adjectives, nouns = movement(build("vqgan-halves"), 0, 2)
    assert (adjectives > 0).nonzero().flatten().tolist() == [2]
    assert not nouns.any()


def test_related_words_move_together(build, vocabulary):
    """Past the shared drift of all codes, a selection pulls its neighbours in the graph more than other words."""
    torch.manual_seed(0)
    network = GraphTransfer(20, 256, 12, dropout=0.0)
    graph, vectors = vocabulary.graph(), vocabulary.vectors
    before = network(vectors, graph)
    blue, neighbours = 2, [6, 9]
    gradient = torch.autograd.grad((before[blue] - 1).square().sum(), list(network.parameters()))
    with torch.no_grad():
        for parameter, step in zip(network.parameters(), gradient, strict=True):
            parameter -= 1e-3 * step
        moved = (network(vectors, graph) - before).norm(dim=1)
    others = [node for node in range(6, 15) if node not in neighbours]
    assert moved[neighbours].mean() > 1.3 * moved[others].mean()


def test_training_step_reaches_the_network_through_the_quantizer(build, images):
    model = build("vqct", dropout=0.0)
    before = [part.detach().clone() for part in model.quantizer.codes]
    output = model(images)
    selected = [set(output.indices[..., :2].flatten().tolist()), set(output.indices[..., 2].flatten().tolist())]
    assert any(len(chosen) < len(codes) for chosen, codes in zip(selected, before, strict=True))
    output.loss.backward()
    torch.optim.SGD(model.quantizer.parameters(), lr=0.1).step()
    for new, old in zip(model.quantizer.codes, before, strict=True):
        assert ((new - old).norm(dim=1) > 0).all()


def test_word_vectors_are_constants(build, vocabulary, images):
    model = build("vqct")
    held = model.quantizer.shared_codebook.word_vectors
    assert not held.requires_grad
    torch.testing.assert_close(held, vocabulary.vectors, rtol=0, atol=0)
    output = model(images)
    (output.reconstruction.mean() + output.loss).backward()
    torch.optim.Adam(model.parameters()).step()
    torch.testing.assert_close(held, vocabulary.vectors, rtol=0, atol=0)


def test_codes_are_generated_once_in_eval_mode_and_again_when_they_may_have_changed(build, images):
    model = build("vqct").eval()
    codebook = model.quantizer.shared_codebook
    calls = []
    codebook.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for _ in range(3):
            first = model(images).reconstruction
            model.decode(model.encode(images))
        assert len(calls) == 1
        recomputed = codebook.network(codebook.word_vectors, codebook.graph)
        torch.testing.assert_close(codebook(), recomputed, rtol=0, atol=0)

        calls.clear()
        model.train().eval()
        assert torch.equal(model(images).reconstruction, first)
        assert len(calls) == 1

        changed = {name: value * 1.5 if "network" in name else value for name, value in model.state_dict().items()}
        model.load_state_dict(changed)
        second = model(images)
        assert not torch.equal(second.reconstruction, first)
        torch.testing.assert_close(
            torch.cat(model.quantizer.codes), codebook.network(codebook.word_vectors, codebook.graph), rtol=0, atol=0
        )

        codebook.network.second.bias.add_(1.0)
        torch.testing.assert_close(codebook(), codebook.network(codebook.word_vectors, codebook.graph), rtol=0, atol=0)

        calls.clear()
        model.to(torch.float64)
        assert model(images.double()).reconstruction.dtype == torch.float64
        assert len(calls) == 1


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", ["vqct", "vqct-mlp"])
def test_compiled_eval_mode_equals_eager(build, images, kind, warm):
    torch._dynamo.reset()
    model, eager = build(kind).eval(), build(kind).eval()
    if warm:
        model(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for factor in (1.0, 1.0, 1.5):
        with torch.no_grad():
            for twin in (model, eager):
                for parameter in twin.quantizer.parameters():
                    parameter.mul_(factor)
        found, expected = compiled(images), eager(images)
        assert torch.equal(found.reconstruction, expected.reconstruction) and torch.equal(found.indices, expected.indices)
        assert torch.equal(found.loss, expected.loss)
    indices = model.encode(images)
    decode = torch.compile(model.decode, fullgraph=True, backend="aot_eager")
    assert torch.equal(decode(indices), decode(indices)) and torch.equal(decode(indices), eager.decode(indices))


def test_inference_mode_leaves_gradients_to_a_later_forward(build, images):
    model, fresh = build("vqct").eval(), build("vqct").eval()
    with torch.inference_mode():
        model(images)
    for twin in (model, fresh):
        output = twin(images)
        (output.loss + output.reconstruction.mean()).backward()
    gradients = [[p.grad for p in twin.parameters() if p.grad is not None] for twin in (model, fresh)]
    assert gradients[0] and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_kept_codes_do_not_carry_autocast_over(build, images):
    model, fresh = build("vqct").eval(), build("vqct").eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(images)
        assert torch.equal(model(images).reconstruction, fresh(images).reconstruction)


def test_a_copy_keeps_codes_of_its_own(build, images):
    model = build("vqct").eval()
    with torch.no_grad():
        expected = model(images).reconstruction
        twin = copy.deepcopy(model)
        twin.quantizer.shared_codebook.network.second.bias.add_(1.0)
        assert not torch.equal(twin(images).reconstruction, expected)
        assert torch.equal(model(images).reconstruction, expected)


def test_dropout_changes_the_training_codebook_only(build):
    model = build("vqct")
    first, second = (torch.cat(model.quantizer.codes) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (torch.cat(model.quantizer.codes) for _ in range(2))
    assert torch.equal(first, second)


def test_words_name_the_codes(build, vocabulary, images):
    model = build("vqct").eval()
    assert model.words == (vocabulary.adjectives, vocabulary.nouns)
    assert model.codebook_sizes == (6, 9)
    indices = model.encode(images)
    named = model.name_codes(indices)
    assert (len(named), len(named[0]), len(named[0][0])) == tuple(indices.shape[:3])
    for picture in range(2):
        first, second, noun = indices[picture, 1, 2].tolist()
        assert named[picture][1][2] == [vocabulary.adjectives[first], vocabulary.adjectives[second], vocabulary.nouns[noun]]
    assert model.name_codes(indices[0, 0, 0]) == named[0][0][0]
    assert model.name_codes(torch.tensor([-1, -1, -1])) == [None, None, None]
    with pytest.raises(ValueError, match="indices: got"):
        model.name_codes(torch.tensor([[0, 1, 9]]))


def test_ablations_of_the_parts(build, vocabulary):
    every = torch.cat(build("vqct", dropout=0.0).quantizer.codes).detach()
    a = len(vocabulary.adjectives)
    for parts, names, selections, rows in [("adjectives", ("adjectives",), (2,), slice(0, a)), ("nouns", ("nouns",), (1,), slice(a, None)),
                                           ("merged", ("words",), (1,), slice(0, None))]:
        model = build("vqct", dropout=0.0, parts=parts)
        assert (model.part_names, model.selections) == (names, selections)
        # All words take part in the graph: the codes are those of the whole model.
        torch.testing.assert_close(torch.cat(model.quantizer.codes), every[rows])
        assert list(model.words[0]) == [*vocabulary.adjectives, *vocabulary.nouns][rows]
        indices = torch.zeros(2, 1, sum(selections), dtype=torch.int64)
        assert model.name_codes(indices)[1][0] == [model.words[0][0]] * sum(selections)


def test_ablations_of_the_prior_and_the_transfer(build, vocabulary):
    words, noise = (build("vqct", prior=prior).quantizer.shared_codebook.word_vectors for prior in (True, False))
    assert torch.equal(words, vocabulary.vectors) and not torch.allclose(noise, words)
    torch.testing.assert_close(noise.std(), words.std(), rtol=0.1, atol=0)
    # What else was drawn is the same.
    first, second = build("vqct"), build("vqct", prior=False)
    assert torch.equal(first.encoder.conv_in.weight, second.encoder.conv_in.weight)
    raw = build("vqct", transfer="none")
    assert torch.equal(torch.cat(raw.quantizer.codes), vocabulary.vectors) and raw.config["code_dim"] == 20
    assert not [name for name, _ in raw.quantizer.named_parameters()]


def test_graph_matters_to_gcn_and_not_to_mlp(build, vocabulary):
    def codes(kind, edges):
        vocabulary.edges, vocabulary.edge_counts = edges, torch.ones(len(edges), dtype=torch.int64)
        return torch.cat(build(kind).eval().quantizer.codes)

    none, one = torch.empty(0, 2, dtype=torch.int64), torch.tensor([[0, 8]])
    assert torch.equal(codes("vqct-mlp", none), codes("vqct-mlp", one))
    without, related = codes("vqct", none), codes("vqct", one)
    assert (without != related).any(1).nonzero().flatten().tolist() == [0, 8]
    without, related = codes("vqct-gat", none), codes("vqct-gat", one)
    assert (without != related).any(1).nonzero().flatten().tolist() == [0, 8]


def test_arguments_that_do_not_fit(build, vocabulary):
    with pytest.raises(TypeError, match="vocabulary: vqct needs one"):
        create("vqct")
    for changes, message in [
        ({"transfer": "lstm"}, "transfer: got 'lstm', expected one of 'gcn', 'gat', 'mlp', 'none'"),
        ({"parts": "verbs"}, "parts: got 'verbs', expected one of 'both', 'adjectives', 'nouns', 'merged'"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"selections": (1,)}, r"selections: got \(1,\)"),
        ({"transfer_dim": 0}, "transfer_dim: got 0"),
        ({"selections": (7, 1)}, "vocabulary: got 6 adjectives, expected at least the 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("vqct", **changes)
