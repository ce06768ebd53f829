"""V2L: a VQ-GAN whose codes are a language model's vocabulary under one learned linear map.

Source: Zhu et al., Beyond Text: Frozen Large Language Models in Visual Signal Comprehension, arXiv 2403.07874.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.codebooks import SuppliedCodebook, TransferredCodebook
from vqkit.models.trunk import TrunkConfig, build_trunk
from vqkit.models.words import WordPrior, WordTokenizer
from vqkit.nn import LinearTransfer
from vqkit.quantizers import ProductQuantizer, Quantizer


@dataclass(frozen=True, kw_only=True)
class V2LConfig(TrunkConfig):
    """A tokenizer at f16; the fields of `TrunkConfig` come with them.

    selections: how many nearest words are averaged at a position, and how many nearest phrases for the whole picture.
    commitment_weight, codebook_weight, gradient, metric: as in `vqkit.Quantizer`.
    """

    selections: tuple[int, int] = (1, 4)
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    gradient: str = "straight_through"
    metric: str = "l2"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "selections", tuple(self.selections))
        if len(self.selections) != 2 or min(self.selections) < 1:
            raise ValueError(f"selections: got {self.selections}, expected two numbers of at least 1: words, phrases")


class V2L(WordTokenizer):
    """VQ-GAN with a local half, a word a position, and a global half, some phrases a picture; words and phrases are frozen vectors.

        codes = linear map(vectors);  a phrase is an adjective and a noun that belong together, its vector the mean of theirs
        local half: the nearest word of every position;  global half, its mean over all positions: the nearest phrases
        loss = sum over both halves of codebook_weight * mean (sg z - e)^2 + commitment_weight * mean (z - sg e)^2

    Indices are (B, h, w, S), words first; those of the phrases are the same at all positions of a picture.

    Our readings: the published vocabularies are those of LLaMA (local) and its words, pairs and triples that CLIP finds in pictures
    (global); here they are those of the captions, the adjective-noun pairs of the graph for the second. The published decoder attends
    to several global codes; here their mean is a half of the channels.

    Attributes:
        part_names, words: ("local", "global") and the words and phrases in the order of their codes.
    """

    name = "v2l"
    Config = V2LConfig

    def __init__(self, config: V2LConfig, prior: WordPrior):
        words = [*prior.adjectives, *prior.nouns]
        parts = {"local": words, "global": [f"{words[adjective]} {words[noun]}" for adjective, noun in prior.pairs]}
        for (name, names), selection in zip(parts.items(), config.selections):
            if len(names) < selection:
                kind = "words" if name == "local" else "pairs of an adjective and a noun"
                raise ValueError(f"vocabulary: got {len(names)} {kind}, expected at least the {selection} that are selected")
        dim, options = config.resolved_code_dim, {"metric": config.metric, "gradient": config.gradient}
        quantizers = [
            Quantizer(dim, len(names), top_k=selection, codebook=SuppliedCodebook(len(names), dim),
                      commitment_weight=config.commitment_weight, **options)
            for names, selection in zip(parts.values(), config.selections)
        ]  # fmt: skip
        vectors = torch.cat([prior.vectors, prior.vectors[torch.tensor(prior.pairs)].mean(1)])
        codebook = TransferredCodebook(vectors, LinearTransfer(vectors.shape[1], dim), None)
        described = dataclasses.asdict(config) | {"vocabulary": prior.describe() | {"pairs": prior.pairs}}
        weights = {"commitment": config.commitment_weight, "codebook": config.codebook_weight}
        quantizer = ProductQuantizer(quantizers, codebook, channel_first=True)
        super().__init__(described, config.downsampling, build_trunk(config, len(parts)), quantizer, weights)
        self.part_names, self.words = tuple(parts), tuple(parts.values())

    def _latents(self, images: Tensor) -> Tensor:
        local, whole = super()._latents(images).chunk(2, 1)
        # The same at all positions, so that the product quantizes it as any half and decodes it without knowing of this.
        return torch.cat([local, whole.mean((2, 3), keepdim=True).expand_as(whole)], 1)
