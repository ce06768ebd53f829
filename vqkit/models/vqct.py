"""VQCT: a VQ-GAN whose codebook is transferred from a language model's words over a graph of their relations.

Source: Zhang et al., Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling, arXiv 2403.10071.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from vqkit.codebooks import SuppliedCodebook, TransferredCodebook
from vqkit.models.tokenizer import Tokenizer
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.nn import GraphTransfer, MLPTransfer
from vqkit.ops import Graph
from vqkit.quantizers import ProductQuantizer, Quantizer

if TYPE_CHECKING:
    from vqkit.language import Vocabulary


@dataclass(frozen=True, kw_only=True)
class VQCTConfig(TrunkConfig):
    """The defaults are the published f16 model; the fields of `TrunkConfig` come with them.

    selections: how many nearest adjectives and nouns are averaged at a position.
    transfer: "gcn", two graph convolutions, or "mlp", two linear layers that see no graph (the paper's ablation).
    transfer_dim: width between the two layers.
    dropout: between the two graph convolutions, in training. The noise reaches every code at every step.
    commitment_weight, codebook_weight: 0.25 and 1. The authors' published code has them swapped, 1 and 0.25.
    gradient, metric: as in `vqkit.Quantizer`.
    """

    selections: tuple[int, int] = (2, 1)
    transfer: str = "gcn"
    transfer_dim: int = 256
    dropout: float = 0.5
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    gradient: str = "straight_through"
    metric: str = "l2"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "selections", tuple(self.selections))
        if len(self.selections) != 2 or min(self.selections) < 1:
            raise ValueError(f"selections: got {self.selections}, expected two numbers of at least 1: adjectives, nouns")
        if self.transfer not in ("gcn", "mlp"):
            raise ValueError(f"transfer: got {self.transfer!r}, expected 'gcn' or 'mlp'")
        if self.transfer_dim < 1:
            raise ValueError(f"transfer_dim: got {self.transfer_dim}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 <= dropout < 1")


@dataclass(frozen=True)
class WordPrior:
    """The words whose vectors become codes: adjectives first, then nouns.

    vectors: (A + N, W) float32; graph: over the A + N words; encoder: the language model; edges: related pairs of words.
    """

    adjectives: list[str]
    nouns: list[str]
    vectors: Tensor
    graph: Graph
    encoder: str
    edges: int

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Self:
        return cls(
            adjectives=list(vocabulary.adjectives),
            nouns=list(vocabulary.nouns),
            vectors=vocabulary.vectors.float(),
            graph=vocabulary.graph(),
            encoder=vocabulary.encoder,
            edges=len(vocabulary.edges),
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
        return cls(
            described["adjectives"], described["nouns"], vectors, graph, described["encoder"], described["edges"]
        )

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


class VQCT(Tokenizer):
    """VQ-GAN with an adjective half and a noun half, both from one network over the words' graph.

        codes = GC2(dropout(ReLU(GC1(word vectors))));  adjectives: mean of the 2 nearest;  nouns: the nearest
        loss = sum over both halves of codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2

    The gradient of any selected code moves the codes of all words: those near it in the graph through their relation,
    the others through the shared weights. Indices are (B, h, w, 3): two adjectives, one noun. In eval mode the codebook
    is generated once and kept.

    Attributes:
        words: (adjectives, nouns), in the order of the codes.
    """

    name = "vqct"
    Config = VQCTConfig

    def __init__(self, config: VQCTConfig, prior: WordPrior):
        sizes = (len(prior.adjectives), len(prior.nouns))
        for kind, size, selection in zip(("adjectives", "nouns"), sizes, config.selections, strict=True):
            if size < selection:
                raise ValueError(f"vocabulary: got {size} {kind}, expected at least the {selection} that are selected")
        dim = config.resolved_code_dim
        parts = [
            Quantizer(
                dim,
                size,
                top_k=selection,
                codebook=SuppliedCodebook(size, dim),
                metric=config.metric,
                commitment_weight=config.commitment_weight,
                gradient=config.gradient,
            )
            for size, selection in zip(sizes, config.selections, strict=True)
        ]
        widths = (prior.vectors.shape[1], config.transfer_dim, dim)
        network: nn.Module = MLPTransfer(*widths)
        if config.transfer == "gcn":
            network = GraphTransfer(*widths, dropout=config.dropout)
        graph = prior.graph if config.transfer == "gcn" else None
        quantizer = ProductQuantizer(parts, TransferredCodebook(prior.vectors, network, graph), channel_first=True)
        described = dataclasses.asdict(config) | {"vocabulary": prior.describe()}
        weights = {"commitment": config.commitment_weight, "codebook": config.codebook_weight}
        super().__init__(described, config.downsampling, build_trunk(config, 2), quantizer, weights)
        self.words = (prior.adjectives, prior.nouns)

    @classmethod
    def create(cls, vocabulary: Vocabulary | None = None, **config) -> Self:
        """A model with fresh weights over the words of a `vqkit.language.Vocabulary`; `config` are fields of `Config`."""
        if vocabulary is None:
            raise TypeError("vocabulary: vqct needs one, see vqkit.language.build_vocabulary and Vocabulary.load")
        return cls(cls.parse(config), WordPrior.of(vocabulary))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if "vocabulary" not in config:
            raise ValueError("config: no 'vocabulary' in it, which names the words of a vqct")
        settings = {key: value for key, value in config.items() if key != "vocabulary"}
        return cls(cls.parse(settings), WordPrior.blank(config["vocabulary"]))

    def name_codes(self, indices: Tensor) -> list:
        """The words of indices (..., S): nested lists of the leading shape, with S words at each position.

        Of S = 3 the first two are adjectives, the third is a noun. -1, a position left out, is named None.
        Raises ValueError where the last dimension is not S, or an index is outside its part.
        """
        self.count_codes(indices)
        columns = [words for words, selection in zip(self.words, self.selections, strict=True) for _ in range(selection)]

        def named(nested: list, depth: int) -> list:
            if depth > 1:
                return [named(item, depth - 1) for item in nested]
            return [words[index] if index >= 0 else None for words, index in zip(columns, nested, strict=True)]

        return named(indices.tolist(), indices.dim())
