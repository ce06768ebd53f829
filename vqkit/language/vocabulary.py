"""The vocabulary of a transferred codebook: adjectives and nouns, the graph between them, their vectors.

Source: arXiv 2403.10071 (VQCT). Filling a small vocabulary from WordNet's glosses is ours.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Iterable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vqkit.language.encoder import Features, encode_words
from vqkit.language.graph import WordCounts, count_words, word_edges
from vqkit.language.lexicon import Lexicon, default_lexicon, shipped_lines
from vqkit.language.vector_cache import write_atomically

if TYPE_CHECKING:
    from vqkit.ops import Graph

_FORMAT = "vqkit.vocabulary.1"
_WORD_FIELDS = ("adjectives", "nouns", "encoder")
_TENSOR_FIELDS = ("edges", "edge_counts", "vectors")


@dataclass(eq=False)
class Vocabulary:
    """Adjectives and nouns with their graph and vectors.

    Fields: `adjectives` (A words) and `nouns` (N words), each without repeats (a word may be in both); `edges` (E, 2)
    int64, an adjective's node and a noun's node (nouns are numbered after all adjectives); `edge_counts` (E,) int64, at
    least 1; `vectors` (A + N, W) float32 in the order of `words`; `encoder`, a note of what made the vectors.

    Raises ValueError or TypeError naming the field that breaks this.
    """

    adjectives: list[str]
    nouns: list[str]
    edges: torch.Tensor
    edge_counts: torch.Tensor
    vectors: torch.Tensor
    encoder: str

    def __post_init__(self):
        for field in ("adjectives", "nouns"):
            _check_words(field, getattr(self, field))
        words = len(self.adjectives) + len(self.nouns)
        _check_tensor("edges", self.edges, torch.int64, (None, 2))
        _check_tensor("edge_counts", self.edge_counts, torch.int64, (len(self.edges),))
        _check_tensor("vectors", self.vectors, torch.float32, (words, None))
        if len(self.edges):
            from_adjective = (self.edges[:, 0] >= 0) & (self.edges[:, 0] < len(self.adjectives))
            to_noun = (self.edges[:, 1] >= len(self.adjectives)) & (self.edges[:, 1] < words)
            bad = (~(from_adjective & to_noun)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"edges: expected (adjective in 0..{len(self.adjectives) - 1}, noun in {len(self.adjectives)}..{words - 1}), "
                    f"got {self.edges[bad[0]].tolist()} at row {bad[0]}"
                )
            if int(self.edge_counts.min()) < 1:
                raise ValueError(f"edge_counts: expected at least 1 each, got {int(self.edge_counts.min())}")
        if not self.vectors.isfinite().all():
            raise ValueError("vectors: expected finite numbers, got NaN or infinity")

    @property
    def words(self) -> list[str]:
        """All words in the order of their nodes: adjectives, then nouns."""
        return self.adjectives + self.nouns

    def graph(self) -> Graph:
        """The normalised word graph, counts as weights: D^-1/2 (A + I) D^-1/2."""
        from vqkit.ops import Graph

        return Graph.from_edges(self.edges, len(self.adjectives) + len(self.nouns), weights=self.edge_counts.float())

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, words in its metadata. A file of that name is replaced whole."""
        # One key: safetensors writes several in no fixed order.
        words = {name: getattr(self, name) for name in _WORD_FIELDS}
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSOR_FIELDS}
        write_atomically(Path(path), save(tensors, {_FORMAT: json.dumps(words)}))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError where the file is no valid vocabulary."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"path: no vocabulary file at {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as problem:
            raise ValueError(f"path: {path} is not a safetensors file: {problem}") from problem
        if _FORMAT not in metadata:
            raise ValueError(f"path: {path} is no vocabulary: its metadata has no {_FORMAT}, only {sorted(metadata)}")
        try:
            words = json.loads(metadata[_FORMAT])
            return cls(**{name: words[name] for name in _WORD_FIELDS}, **{name: tensors[name] for name in _TENSOR_FIELDS})
        except KeyError as problem:
            raise ValueError(f"path: {path} lacks {problem}") from problem
        except (ValueError, TypeError) as problem:
            raise ValueError(f"path: {path} is damaged: {problem}") from problem


def build_vocabulary(
    captions: Iterable[str],
    *,
    max_adjectives: int | None = 1024,
    max_nouns: int | None = 1024,
    min_count: int = 1,
    encoder: str = "minilm",
    features: Features | None = None,
    standardise: bool | None = None,
    fill_from_wordnet: bool = True,
    cache_dir: str | None = None,
) -> Vocabulary:
    """A vocabulary from captions: their most frequent adjectives and nouns, and how often one stands before the other.

    Args:
        captions: any iterable of strings, read once.
        max_adjectives, max_nouns: keep the most frequent (ties in alphabetical order); None keeps all and fills none.
        min_count: keep words that occur at least so often (the paper's "more than 10": 11; CelebA-HQ: 301).
        encoder, features, standardise, cache_dir: see `encode_words`.
        fill_from_wordnet: where captions give fewer words than the maxima, add words of WordNet's definitions and
            examples, concrete and well connected ones first, after the caption words. Then the pairs of kept words that
            only WordNet's texts have are added to the graph with their counts there; pairs of captions keep theirs.

    Returns:
        Vocabulary; fewer words than asked where even WordNet has no more.

    Parts of speech and lemmas are English. Warns where WordNet knows less than three quarters of the captions' words; captions in another
    language need a `Vocabulary` of words, edges and vectors (`encode_words`) of their own.

    Raises:
        TypeError: `captions` is one string or holds something else than strings.
        ValueError: no captions; WordNet knows less than half of their words; a maximum or min_count below 1; no adjective, noun or edge is
            left; see `encode_words`.
    """
    for argument, value in (("max_adjectives", max_adjectives), ("max_nouns", max_nouns), ("min_count", min_count)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{argument}: expected an integer of at least 1, got {value!r}")
    lexicon = default_lexicon()
    counts = count_words(captions, lexicon=lexicon)
    _check_language(counts)
    adjectives = _most_frequent(counts.adjectives, max_adjectives, min_count)
    nouns = _most_frequent(counts.nouns, max_nouns, min_count)
    pairs = counts.pairs
    if fill_from_wordnet:
        asked = (max_adjectives or 0) - len(adjectives), (max_nouns or 0) - len(nouns)
        if max(asked) > 0:
            adjectives, nouns = _filled(adjectives, nouns, asked, lexicon)
            pairs = Counter({**_shipped_phrases(), **counts.pairs})
    if not adjectives or not nouns:
        raise ValueError(_nothing_left("adjectives" if not adjectives else "nouns", counts, min_count))
    edges, edge_counts = word_edges(pairs, adjectives, nouns)
    if not len(edges):
        raise ValueError(_nothing_left("adjective-noun pairs", counts, min_count))
    made = encode_words(adjectives, nouns, encoder=encoder, features=features, standardise=standardise, cache_dir=cache_dir)
    return Vocabulary(adjectives, nouns, edges, edge_counts, made.vectors, made.description)


@lru_cache(maxsize=1)
def _shipped_phrases() -> Counter:
    rows = (line.split() for line in shipped_lines("phrases.txt.gz"))
    return Counter({(adjective, noun): int(count) for adjective, noun, count in rows})


def wordnet_phrases() -> Counter:
    """(adjective, noun) -> how often they stand together in WordNet 3.0's definitions and examples; a copy."""
    return Counter(_shipped_phrases())


def _most_frequent(counts: Counter, limit: int | None, min_count: int) -> list[str]:
    kept = [word for word, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda word: (-counts[word], word))[:limit]


def _filled(adjectives: list[str], nouns: list[str], asked: tuple[int, int], lexicon: Lexicon) -> tuple[list[str], list[str]]:
    """The words with up to `asked` adjectives and nouns of WordNet's phrases added: adjectives by how many concrete nouns
    they stand before, then nouns, concrete ones first, by how many kept adjectives stand before them."""
    phrases = _shipped_phrases()
    reach: Counter = Counter(adjective for adjective, noun in phrases if lexicon.is_concrete(noun))
    adjectives = adjectives + _ranked(reach, set(adjectives))[: max(asked[0], 0)]
    kept = set(adjectives)
    links: Counter = Counter(noun for adjective, noun in phrases if adjective in kept)
    candidates = sorted(_ranked(links, set(nouns)), key=lambda noun: not lexicon.is_concrete(noun))
    return adjectives, nouns + candidates[: max(asked[1], 0)]


def _ranked(counts: Counter, known: set[str]) -> list[str]:
    return sorted((word for word in counts if word not in known), key=lambda word: (-counts[word], word))


def _check_language(counts: WordCounts) -> None:
    unknown = sum(counts.unknown.values())
    said = (f"captions: expected English, got {counts.words} words of which WordNet does not know {unknown}, such as "
            f"{', '.join(repr(word) for word, _ in counts.unknown.most_common(3))}")
    if 2 * unknown > counts.words:
        raise ValueError(f"{said}; for another language build a Vocabulary of your own, its vectors by encode_words")
    if 4 * unknown > counts.words:
        warnings.warn(f"{said}; these are taken for nouns", stacklevel=3)


def _nothing_left(what: str, counts: WordCounts, min_count: int) -> str:
    return (
        f"captions: no {what} left of {counts.captions} captions with {len(counts.adjectives)} adjectives, {len(counts.nouns)} nouns "
        f"and {len(counts.pairs)} pairs at min_count={min_count}"
    )


def _check_words(field: str, words: list[str]) -> None:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{field}: expected a list of strings, got {type(words).__name__}")
    if not words:
        raise ValueError(f"{field}: expected at least one word, got none")
    if len(set(words)) < len(words):
        raise ValueError(f"{field}: expected no repeats, got {Counter(words).most_common(1)[0][0]!r} more than once")


def _check_tensor(field: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{field}: expected a tensor, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(want in (None, size) for want, size in zip(shape, tensor.shape))
    if not fits or tensor.dtype != dtype:
        raise ValueError(f"{field}: expected {dtype} of shape {shape}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
