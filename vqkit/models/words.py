"""What tokenizers over a language model's words share: the words, their checkpoint, and the names of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from vqkit.models.tokenizer import Tokenizer
from vqkit.ops import Graph

if TYPE_CHECKING:
    from vqkit.language import Vocabulary


@dataclass(frozen=True)
class WordPrior:
    """The words whose vectors become codes: adjectives first, then nouns.

    vectors: (A + N, W) float32; graph: over the A + N words; encoder: the language model; edges: related pairs of words.
    pairs: these pairs, [adjective, noun] by their numbers among the A + N words; () where they were not kept.
    """

    adjectives: list[str]
    nouns: list[str]
    vectors: Tensor
    graph: Graph
    encoder: str
    edges: int
    pairs: list[list[int]] | tuple[()] = ()

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Self:
        return cls(
            adjectives=list(vocabulary.adjectives),
            nouns=list(vocabulary.nouns),
            vectors=vocabulary.vectors.float(),
            graph=vocabulary.graph(),
            encoder=vocabulary.encoder,
            edges=len(vocabulary.edges),
            pairs=vocabulary.edges.tolist(),
        )

    @classmethod
    def blank(cls, described: dict[str, Any]) -> Self:
        """A prior of the shape that `describe` noted, its tensors to be loaded."""
        size, entries = len(described["adjectives"]) + len(described["nouns"]), described["graph_entries"]
        integers = {"dtype": torch.int64}
        # all entries in the first row
        offsets = torch.tensor([0, *[entries] * size], **integers)
        graph = Graph(offsets, torch.zeros(entries, **integers), torch.zeros(entries), True)
        vectors = torch.zeros(size, described["vector_dim"])
        names = (described["adjectives"], described["nouns"])
        return cls(*names, vectors, graph, described["encoder"], described["edges"], described.get("pairs", ()))

    def describe(self) -> dict[str, Any]:
        """What config.json keeps; the tensors are in the safetensors."""
        return {
            "adjectives": self.adjectives,
            "nouns": self.nouns,
            "encoder": self.encoder,
            "edges": self.edges,
            "vector_dim": self.vectors.shape[1],
            "graph_entries": len(self.graph.neighbours),
        }


class WordTokenizer(Tokenizer):
    """A tokenizer whose codes have names; a subclass is built as `cls(config, prior)`, and its `config` has "vocabulary".

    Attributes:
        part_names, words: of each part its name, and the names of its codes in their order.
    """

    @classmethod
    def create(cls, vocabulary: Vocabulary | None = None, **config) -> Self:
        """A model with fresh weights over the words of a `vqkit.language.Vocabulary`; `config` are fields of `Config`."""
        if vocabulary is None:
            raise TypeError(f"vocabulary: {cls.name} needs one, see vqkit.language.build_vocabulary and Vocabulary.load")
        return cls(cls.parse(config), WordPrior.of(vocabulary))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if "vocabulary" not in config:
            raise ValueError(f"config: no 'vocabulary' in it, which names the words of a {cls.name}")
        settings = {key: value for key, value in config.items() if key != "vocabulary"}
        return cls(cls.parse(settings), WordPrior.blank(config["vocabulary"]))

    def name_codes(self, indices: Tensor) -> list:
        """The names of indices (..., S): nested lists of the leading shape, with S names at each position, those of the first part first.

        -1, a position left out, is named None. Raises ValueError where the last dimension is not S, or an index is outside its part.
        """
        self.count_codes(indices)
        columns = [words for words, selection in zip(self.words, self.selections, strict=True) for _ in range(selection)]

        def named(nested: list, depth: int) -> list:
            if depth > 1:
                return [named(item, depth - 1) for item in nested]
            return [words[index] if index >= 0 else None for words, index in zip(columns, nested, strict=True)]

        return named(indices.tolist(), indices.dim())
