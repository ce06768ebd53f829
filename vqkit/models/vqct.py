"""VQCT: a VQ-GAN whose codebook is transferred from a language model's words over a graph of their relations.

Source: Zhang et al., Codebook Transfer with Part-of-Speech for Vector-Quantized Image Modeling, arXiv 2403.10071.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqkit.codebooks import SuppliedCodebook, TransferredCodebook
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.models.words import WordPrior, WordTokenizer
from vqkit.nn import GraphAttentionTransfer, GraphTransfer, MLPTransfer, NoTransfer
from vqkit.quantizers import ProductQuantizer, Quantizer

TRANSFERS = ("gcn", "gat", "mlp", "none")
PARTS = ("both", "adjectives", "nouns", "merged")


@dataclass(frozen=True, kw_only=True)
class VQCTConfig(TrunkConfig):
    """The defaults are the published f16 model; the fields of `TrunkConfig` come with them.

    selections: how many nearest adjectives and nouns are averaged at a position.
    transfer: "gcn", two graph convolutions; the paper's ablations "gat", two layers of graph attention, "mlp", two linear layers that
        see no graph, and "none", the word vectors as they are, whose length is then the codes'.
    transfer_dim: width between the two layers.
    dropout: between the two layers of "gcn" and "gat", in training. The noise reaches every code at every step.
    parts: "both", halves of the channels for adjectives and nouns; the ablations "adjectives" and "nouns" have one of the two, and
        "merged" one codebook of all words, of which the nearest is selected (our reading). All words are in the graph always.
    prior: False replaces the word vectors by noise of their mean and variance, drawn by a seed of its own: the graph without language.
    commitment_weight, codebook_weight: 0.25 and 1. The authors' published code has them swapped, 1 and 0.25.
    gradient, metric: as in `vqkit.Quantizer`.
    """

    selections: tuple[int, int] = (2, 1)
    transfer: str = "gcn"
    transfer_dim: int = 256
    dropout: float = 0.5
    parts: str = "both"
    prior: bool = True
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    gradient: str = "straight_through"
    metric: str = "l2"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "selections", tuple(self.selections))
        if len(self.selections) != 2 or min(self.selections) < 1:
            raise ValueError(f"selections: got {self.selections}, expected two numbers of at least 1: adjectives, nouns")
        for name, known in (("transfer", TRANSFERS), ("parts", PARTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(map(repr, known))}")
        if self.transfer_dim < 1:
            raise ValueError(f"transfer_dim: got {self.transfer_dim}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 <= dropout < 1")


class VQCT(WordTokenizer):
    """VQ-GAN with an adjective half and a noun half, both from one network over the words' graph.

        codes = GC2(dropout(ReLU(GC1(word vectors))));  adjectives: mean of the 2 nearest;  nouns: the nearest
        loss = sum over both halves of codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2

    The gradient of any selected code moves the codes of all words: those near it in the graph through their relation,
    the others through the shared weights. Indices are (B, h, w, 3): two adjectives, one noun. In eval mode the codebook
    is generated once and kept.

    Attributes:
        part_names, words: ("adjectives", "nouns") and the words of each in the order of their codes; of other parts likewise.
    """

    name = "vqct"
    Config = VQCTConfig

    def __init__(self, config: VQCTConfig, prior: WordPrior):
        parts = _parts(config, prior)
        for name, words, selection in parts:
            if len(words) < selection:
                raise ValueError(f"vocabulary: got {len(words)} {name}, expected at least the {selection} that are selected")
        if config.transfer == "none":
            config = dataclasses.replace(config, code_dim=prior.vectors.shape[1])
        dim = config.resolved_code_dim
        quantizers = [
            Quantizer(
                dim,
                len(words),
                top_k=selection,
                codebook=SuppliedCodebook(len(words), dim),
                metric=config.metric,
                commitment_weight=config.commitment_weight,
                gradient=config.gradient,
            )
            for _, words, selection in parts
        ]
        network = _transfer(config, prior.vectors.shape[1])
        graph = prior.graph if config.transfer in ("gcn", "gat") else None
        vectors = prior.vectors if config.prior else _noise_like(prior.vectors)
        first = len(prior.adjectives) if config.parts == "nouns" else 0
        rows = (first, first + sum(len(words) for _, words, _ in parts))
        quantizer = ProductQuantizer(quantizers, TransferredCodebook(vectors, network, graph, rows), channel_first=True)
        described = dataclasses.asdict(config) | {"vocabulary": prior.describe()}
        weights = {"commitment": config.commitment_weight, "codebook": config.codebook_weight}
        super().__init__(described, config.downsampling, build_trunk(config, len(parts)), quantizer, weights)
        self.part_names, self.words = tuple(name for name, _, _ in parts), tuple(words for _, words, _ in parts)


def _parts(config: VQCTConfig, prior: WordPrior) -> list[tuple[str, list[str], int]]:
    """Name, words and number selected of each part."""
    adjectives, nouns = config.selections
    if config.parts == "merged":
        return [("words", [*prior.adjectives, *prior.nouns], 1)]
    parts = [("adjectives", prior.adjectives, adjectives), ("nouns", prior.nouns, nouns)]
    return [part for part in parts if config.parts in ("both", part[0])]


def _transfer(config: VQCTConfig, vector_dim: int) -> nn.Module:
    widths = (vector_dim, config.transfer_dim, config.resolved_code_dim)
    if config.transfer == "gcn":
        return GraphTransfer(*widths, dropout=config.dropout)
    if config.transfer == "gat":
        return GraphAttentionTransfer(*widths, dropout=config.dropout)
    return MLPTransfer(*widths) if config.transfer == "mlp" else NoTransfer(vector_dim)


def _noise_like(vectors: Tensor) -> Tensor:
    # A generator of its own: the networks' weights are then those of the model with the prior.
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    return noise * vectors.std() + vectors.mean()
