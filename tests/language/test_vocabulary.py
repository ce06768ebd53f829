"""Vocabularies from captions: which words and edges, filling from WordNet, files."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqkit.language import Vocabulary, build_vocabulary, wordnet_phrases
from vqkit.language.lexicon import shipped_lexicon

CAPTIONS = ["a small black dog on green grass", "a black dog", "a black cat and a green tree", "two green trees"]


class EveryWord:
    """Stands in for a language model: a word's vector is made of its letters."""

    def check_words(self, words):
        pass

    def input_vectors(self, words):
        return torch.tensor([[len(word), ord(word[0]), ord(word[-1]), hash_of(word)] for word in words], dtype=torch.float32)


def hash_of(word):
    return sum(ord(letter) * place for place, letter in enumerate(word, start=1)) % 97


@pytest.fixture(autouse=True)
def letters_for_vectors(monkeypatch):
    monkeypatch.setattr("vqkit.language.encoder.open_model", lambda found: EveryWord())


@pytest.fixture
def build(tmp_path):
    return lambda captions, **options: build_vocabulary(captions, cache_dir=tmp_path / "cache", **options)


def pairs_of(vocabulary):
    return {(vocabulary.words[a], vocabulary.words[n]): c for (a, n), c in zip(vocabulary.edges.tolist(), vocabulary.edge_counts.tolist())}


def test_the_most_frequent_words_come_first_and_edges_carry_counts(build):
    vocabulary = build(CAPTIONS, fill_from_wordnet=False, standardise=False)
    assert vocabulary.adjectives == ["black", "green", "small"]
    assert vocabulary.nouns == ["dog", "tree", "cat", "grass"]
    expected = {("black", "dog"): 2, ("black", "cat"): 1, ("green", "tree"): 2, ("green", "grass"): 1}
    assert pairs_of(vocabulary) == expected
    assert torch.equal(vocabulary.vectors, EveryWord().input_vectors(vocabulary.words))


def test_limits_and_min_count(build):
    vocabulary = build(CAPTIONS, max_adjectives=1, max_nouns=2, fill_from_wordnet=False)
    assert (vocabulary.adjectives, vocabulary.nouns) == (["black"], ["dog", "tree"])
    assert pairs_of(vocabulary) == {("black", "dog"): 2}
    vocabulary = build(CAPTIONS, min_count=2, fill_from_wordnet=False)
    assert (vocabulary.adjectives, vocabulary.nouns) == (["black", "green"], ["dog", "tree"])
    everything = build(CAPTIONS, max_adjectives=None, max_nouns=None)
    assert len(everything.words) == 7


def test_wordnet_fills_to_the_size_asked_without_displacing_caption_words(build):
    captions = ["a large red striped circle above a small blue square", "a tiny green dotted triangle left of a big yellow star"]
    vocabulary = build(captions)
    assert (len(vocabulary.adjectives), len(vocabulary.nouns)) == (1024, 1024)
    assert sorted(vocabulary.adjectives[:10]) == sorted("large red striped small blue tiny green dotted big yellow".split())
    assert {"circle", "square", "triangle", "star"} <= set(vocabulary.nouns[:5])
    assert len(set(vocabulary.adjectives)) == len(set(vocabulary.nouns)) == 1024
    added = vocabulary.nouns[5:]
    assert all(shipped_lexicon().is_concrete(noun) for noun in added)
    linked = torch.bincount(vocabulary.edges.flatten(), minlength=2048) > 0
    assert linked[10:1024].all() and linked[1029:].all()

    phrases, pairs = wordnet_phrases(), pairs_of(vocabulary)
    assert pairs["striped", "circle"] == 1 and pairs["blue", "square"] == 1 and pairs["yellow", "star"] == 1
    from_captions = {("striped", "circle"), ("blue", "square"), ("dotted", "triangle"), ("yellow", "star")}
    assert all(count == phrases[pair] for pair, count in pairs.items() if pair not in from_captions)
    kept_adjectives, kept_nouns = set(vocabulary.adjectives), set(vocabulary.nouns)
    assert {pair for pair in phrases if pair[0] in kept_adjectives and pair[1] in kept_nouns} | from_captions == set(pairs)


def test_caption_pairs_keep_their_counts_where_wordnet_has_them_too(build):
    assert wordnet_phrases()["white", "flower"] > 1
    vocabulary = build(["a white flower"], max_adjectives=3, max_nouns=3)
    assert pairs_of(vocabulary)["white", "flower"] == 1


def test_a_full_vocabulary_takes_nothing_from_wordnet(build):
    filled = build(CAPTIONS, max_adjectives=3, max_nouns=4)
    plain = build(CAPTIONS, max_adjectives=3, max_nouns=4, fill_from_wordnet=False)
    assert filled.words == plain.words and pairs_of(filled) == pairs_of(plain)


def test_two_builds_are_equal_whatever_the_order_of_captions(build):
    first, second = build(CAPTIONS), build(CAPTIONS[::-1])
    assert first.words == second.words and torch.equal(first.edges, second.edges) and torch.equal(first.vectors, second.vectors)


@pytest.mark.parametrize(
    "captions, options, message",
    [
        ([], {}, "captions: expected at least one"),
        (["the of and"], {"fill_from_wordnet": False}, "no adjectives left of 1 captions"),
        (["it is red"], {"fill_from_wordnet": False}, "no nouns left"),
        (["the dog is black"], {"fill_from_wordnet": False}, "no adjective-noun pairs left"),
        (CAPTIONS, {"min_count": 9, "fill_from_wordnet": False}, "no adjectives left .* min_count=9"),
        (CAPTIONS, {"max_nouns": 0}, "max_nouns: .* got 0"),
        (CAPTIONS, {"max_adjectives": 2.5}, "max_adjectives: .* got 2.5"),
        (CAPTIONS, {"min_count": -1}, "min_count: .* got -1"),
    ],
)
def test_what_cannot_make_a_vocabulary_is_named(build, captions, options, message):
    with pytest.raises(ValueError, match=message):
        build(captions, **options)


def test_a_saved_vocabulary_comes_back_equal(build, tmp_path):
    vocabulary = build(CAPTIONS + ["a naïve café"])
    vocabulary.save(tmp_path / "words.safetensors")
    loaded = Vocabulary.load(tmp_path / "words.safetensors")
    assert (loaded.adjectives, loaded.nouns, loaded.encoder) == (vocabulary.adjectives, vocabulary.nouns, vocabulary.encoder)
    for name in ("edges", "edge_counts", "vectors"):
        assert torch.equal(getattr(loaded, name), getattr(vocabulary, name))
    assert "café" in loaded.nouns
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "words.safetensors").read_bytes()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_a_saved_vocabulary_honours_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        small_vocabulary().save(tmp_path / "words.safetensors")
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_graph_is_the_normalised_matrix_of_counts(build):
    vocabulary = build(CAPTIONS, fill_from_wordnet=False)
    graph, size = vocabulary.graph(), len(vocabulary.words)
    made = torch.zeros(size, size, dtype=torch.float64)
    for node in range(size):
        for edge in range(int(graph.offsets[node]), int(graph.offsets[node + 1])):
            made[node, graph.neighbours[edge]] += graph.weights[edge].double()
    adjacency = torch.eye(size, dtype=torch.float64)
    for (adjective, noun), count in zip(vocabulary.edges.tolist(), vocabulary.edge_counts.tolist()):
        adjacency[adjective, noun] += count
        adjacency[noun, adjective] += count
    scale = adjacency.sum(1).rsqrt()
    torch.testing.assert_close(made, scale[:, None] * adjacency * scale, rtol=1e-6, atol=1e-6)


def small_vocabulary(**changes):
    fields = dict(
        adjectives=["red", "blue"], nouns=["dog"], edges=torch.tensor([[0, 2]]), edge_counts=torch.tensor([3]),
        vectors=torch.zeros(3, 4), encoder="letters",
    )  # fmt: skip
    return Vocabulary(**{**fields, **changes})


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"adjectives": "red"}, TypeError, "adjectives: expected a list"),
        ({"adjectives": ["red", "red"]}, ValueError, "adjectives: .*'red' more than once"),
        ({"nouns": []}, ValueError, "nouns: expected at least one"),
        ({"edges": torch.tensor([[0, 1]])}, ValueError, r"edges: .*got \[0, 1\] at row 0"),
        ({"edges": torch.tensor([[0, 3]])}, ValueError, r"edges: .*got \[0, 3\]"),
        ({"edges": torch.tensor([[0.0, 2.0]])}, ValueError, "edges: expected torch.int64"),
        ({"edge_counts": torch.tensor([3, 4])}, ValueError, "edge_counts"),
        ({"edge_counts": torch.tensor([0])}, ValueError, "edge_counts: .*got 0"),
        ({"vectors": torch.zeros(2, 4)}, ValueError, "vectors"),
        ({"vectors": torch.full((3, 4), float("nan"))}, ValueError, "vectors: .*NaN"),
        ({"vectors": [[0.0]]}, TypeError, "vectors: expected a tensor"),
    ],
)
def test_an_inconsistent_vocabulary_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        small_vocabulary(**changes)


def test_loading_refuses_files_that_are_no_vocabulary(tmp_path):
    path = tmp_path / "words.safetensors"
    with pytest.raises(FileNotFoundError, match="words.safetensors"):
        Vocabulary.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Vocabulary.load(path)
    save_file({"vectors": torch.zeros(3, 4)}, path)
    with pytest.raises(ValueError, match="is no vocabulary"):
        Vocabulary.load(path)
    small_vocabulary().save(path)
    tensors = load_file(path)
    words = {"adjectives": ["red", "blue"], "nouns": ["dog"], "encoder": "letters"}
    for kept, metadata, message in [
        (("edges", "vectors"), json.dumps(words), "lacks 'edge_counts'"),
        (tensors, json.dumps({**words, "nouns": ["dog", "cat"]}), "damaged: vectors"),
        (tensors, json.dumps({"nouns": ["dog"]}), "lacks 'adjectives'"),
        (tensors, "[dog", "damaged"),
        (tensors, "[]", "damaged"),
    ]:
        save_file({name: tensors[name] for name in kept}, path, {"vqkit.vocabulary.1": metadata})
        with pytest.raises(ValueError, match=message):
            Vocabulary.load(path)
