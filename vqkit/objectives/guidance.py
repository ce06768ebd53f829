"""LG-VQ: captions guide the codes of any tokenizer.

Source: Liang et al., LG-VQ: Language-Guided Codebook Learning, arXiv 2405.14206 (NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.nn.map_transformer import MapTransformer
from vqkit.nn.masked_text_decoder import MaskedTextDecoder
from vqkit.objectives.alignment import global_alignment, nearest_positions, relation_errors, word_states
from vqkit.objectives.text_objective import TextModel, TextObjective, Tokens, full_precision, mean_over_ranks, world

_LABEL_SMOOTHING = 0.1
# Mask rates: normal(0.5, 0.1) between these bounds.
_RATES, _LOWEST, _HIGHEST = NormalDist(0.5, 0.1), 0.1, 0.3


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Weights and shape of LG-VQ's guidance. A weight of 0 leaves its loss, and what only it needs, out."""

    alpha: float = 1e-3
    """Of global semantic alignment. Published: TextCaps, CelebA-HQ and CUB-200 1e-3."""
    beta: float = 1e-2
    """Of masked text prediction. Published: TextCaps and CelebA-HQ 1e-2, CUB-200 1e-3."""
    gamma: float = 1e-4
    """Of relationship alignment. Published: TextCaps and CelebA-HQ 1e-4, CUB-200 1e-3."""
    mask: Literal["input", "output"] = "input"
    """"input": whole words are hidden from the text model too, so that no context can tell them (corrected). "output": tokens are
    replaced behind the text model, whose other states know them (published)."""
    attend_padding: bool = False
    """Whether the decoder of masked words looks at padding, as the published code does."""
    dropout: float = 0.1
    """In the decoder of masked words. Published: 0.1."""
    width: int = 256
    """Of the transformer over the map. Published: 256."""
    depth: int = 2
    """Its layers, with one head. Published: 2."""

    def __post_init__(self):
        if min(self.alpha, self.beta, self.gamma) < 0:
            raise ValueError(f"alpha, beta, gamma: expected 0 or more, got {self.alpha}, {self.beta}, {self.gamma}")
        if not self.alpha and not self.beta:
            raise ValueError("alpha, beta: got 0 and 0; one of them has to teach the transformer that relationship alignment looks into")
        if self.mask not in ("input", "output"):
            raise ValueError(f"mask: expected 'input' or 'output', got {self.mask!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        if min(self.width, self.depth) < 1:
            raise ValueError(f"width, depth: expected at least 1, got {self.width}, {self.depth}")


class GuidanceText(NamedTuple):
    """What the losses need of B captions of T tokens, all without gradient.

    ids: int64 (B, T).  visible: bool (B, T), False for padding.  words: int64 (B, T), the word of a token, -1 for none.
    masked: bool (B, T), the tokens to be predicted.  present: bool (B,), False for a picture without caption.
    states: (B, T, W) of the whole text.  context: (B, T, W), what the decoder may know.  sentence: (B, W).
    """

    ids: Tensor
    visible: Tensor
    words: Tensor
    masked: Tensor
    present: Tensor
    states: Tensor
    context: Tensor
    sentence: Tensor


def mask_rate(draw: float) -> float:
    """The share of a batch's words to be masked, from a number drawn uniformly in 0 .. 1.

    normal(0.5, 0.1) truncated to [0.1, 0.3], by its inverse distribution. Source: LG-VQ's published code; that "cut" is truncation
    and not clamping is our reading.
    """
    low, high = _RATES.cdf(_LOWEST), _RATES.cdf(_HIGHEST)
    return min(_HIGHEST, max(_LOWEST, _RATES.inv_cdf(low + draw * (high - low))))


class LanguageGuidance(TextObjective):
    """Three losses that pull a tokenizer's quantised map towards its caption; any tokenizer, trained with it.

        L = alpha L_gsa + beta L_mtp + gamma L_ras

    With Z_vt the output of a small transformer over the map, its CLS first, all of the text detached and s the cosine:

        L_gsa = mean over pictures i of -log( exp s(e_CLS^i, e_EOT^i) / sum_j exp s(e_CLS^i, e_EOT^j) )
        L_mtp = mean over masked tokens of the cross-entropy (label smoothing 0.1) given Z_vt and the rest of the text
        L_ras = mean over pairs of words of (s(e_wi, e_wj) - s(e_zi, e_zj))^2,  e_zi = Z[argmax over Z_vt[1:] of s(e_wi, .)]

    where Z is the map through Linear, GELU, LayerNorm. A picture without caption takes part in none of them.

    Args:
        code_dim: D of the map.
        grid: side of the map that position vectors are made for; others get them resized.
        token_embeddings: (V, W), the text model's own, frozen.
        context: most tokens of a caption.
        config: weights, masking and shape.

    Call: quantized (B, D, h, w), text (`read`) -> (loss, terms): the weighted sum, and "global_alignment", "masked_words" and
    "relation" unweighted, those of weight 0 left out. Without any caption, masked token or pair a term is zero, with zero gradients.
    The gradient reaches the map and this module.

    Under an initialised torch.distributed the texts of all ranks are each other's alternatives and the means run over all ranks (one
    gather, one all-reduce): every rank has to call with the same B, and averaged gradients are those of the whole batch. Dropout is
    drawn on each rank for its own pictures.

    Raises ValueError for a map or texts of another shape.
    Source: the paper's Semantic Alignment Module (L_gsa, L_mtp) and Relationship Alignment Module (L_ras). The paper sums L_gsa and L_ras where its code takes the mean, as here. Ours: the mean over all pairs and
    masked tokens of a batch, words as means of their pieces, the linear map from D to the transformer's width.
    """

    kind = "lgvq"
    Config = GuidanceConfig

    def __init__(self, code_dim: int, grid: int, token_embeddings: Tensor, config: GuidanceConfig | None = None, context: int = 30):
        super().__init__(code_dim, grid, token_embeddings, config, context)
        self.weights = {"global_alignment": self.config.alpha, "masked_words": self.config.beta, "relation": self.config.gamma}
        self.reader = MapTransformer(code_dim, grid, self.config.width, self.config.depth, 1, self.text_width)
        self.decoder = MaskedTextDecoder(token_embeddings, context, dropout=self.config.dropout) if self.config.beta else None
        self.relation = None
        if self.config.gamma:
            self.relation = nn.Sequential(nn.Linear(code_dim, self.text_width), nn.GELU(), nn.LayerNorm(self.text_width))

    def choose_masked(self, tokens: Tokens, rate: float, draws: Tensor) -> Tensor:
        """Which tokens are masked, bool (B, T): each with probability `rate`, from `draws` (B, T) uniform in 0 .. 1.

        With mask="input" whole words, by the draw of their number (what is left of a word would tell the rest; ours); with
        mask="output" single tokens. Never the first and last token that the text model adds, padding, or a text that is not there.
        """
        if self.config.mask == "output":
            return (draws < rate) & tokens.content & tokens.present.unsqueeze(1)
        chosen = draws.gather(1, tokens.words.clamp_min(0)) < rate
        return chosen & (tokens.words >= 0) & tokens.present.unsqueeze(1)

    @torch.no_grad()
    def read(self, encoder: TextModel, tokens: Tokens, masked: Tensor) -> GuidanceText:
        """The features that the losses compare with; with mask="input" the text model also reads the text without its masked tokens."""
        states, sentence = encoder.features(tokens)
        context = states
        if self.config.mask == "input" and self.decoder is not None and masked.any():
            context, _ = encoder.features(tokens, hidden=masked)
        return GuidanceText(tokens.ids, tokens.visible, tokens.words, masked, tokens.present, states, context, sentence)

    def forward(self, quantized: Tensor, text: GuidanceText) -> tuple[Tensor, dict[str, Tensor]]:
        self._check(quantized, text)
        seen = self.reader(quantized)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        if self.config.alpha:
            texts, present, first = _all_texts(text)
            own = first + torch.arange(len(quantized), device=quantized.device)
            sums["global_alignment"] = global_alignment(seen[:, 0], texts, own, present).sum(), text.present.sum()
        if self.decoder is not None:
            logits, wanted = self.predict_masked(seen, text), text.ids[text.masked]
            loss = F.cross_entropy(full_precision(logits), wanted, label_smoothing=_LABEL_SMOOTHING, reduction="sum")
            sums["masked_words"] = loss, text.masked.sum()
        if self.relation is not None:
            errors, pairs = self.relation_errors(quantized, seen, text)
            sums["relation"] = errors.sum(), pairs.sum()
        shares = mean_over_ranks(torch.stack([count for _, count in sums.values()]))
        terms = {name: summed / share for (name, (summed, _)), share in zip(sums.items(), shares, strict=True)}
        return sum(self.weights[name] * term for name, term in terms.items()), terms

    def predict_masked(self, seen: Tensor, text: GuidanceText) -> Tensor:
        """Logits (M, V) of the masked tokens, row by row, from `reader(quantized)`. Raises ValueError where beta is 0."""
        if self.decoder is None:
            raise ValueError("beta: got 0, so there is no decoder of masked words")
        visible = torch.ones_like(text.visible) if self.config.attend_padding else text.visible
        return self.decoder(text.context.detach().to(seen.dtype), text.masked, visible, seen)

    def relation_errors(self, quantized: Tensor, seen: Tensor, text: GuidanceText) -> tuple[Tensor, Tensor]:
        """`alignment.relation_errors` of each picture's words and the codes nearest to them. Raises ValueError where gamma is 0."""
        if self.relation is None:
            raise ValueError("gamma: got 0, so there are no codes to compare with words")
        words, exist = word_states(text.states, text.words)
        exist = exist & text.present.unsqueeze(1)
        nearest = nearest_positions(words, seen[:, 1:])
        codes = self.relation(quantized.flatten(2).transpose(1, 2))
        codes = codes.gather(1, nearest.unsqueeze(2).expand(-1, -1, codes.shape[2]))
        return relation_errors(words, codes, exist)

    def _check(self, quantized: Tensor, text: GuidanceText) -> None:
        self._check_map(quantized)
        batch, length = text.ids.shape
        if batch != len(quantized) or length > self.context or text.states.shape != (batch, length, self.text_width):
            raise ValueError(f"text: expected {len(quantized)} texts of at most {self.context} tokens with states of {self.text_width}, "
                             f"got ids {tuple(text.ids.shape)} and states {tuple(text.states.shape)}")


def _all_texts(text: GuidanceText) -> tuple[Tensor, Tensor, int]:
    """Sentences and presence of all ranks, and the place of this rank's first."""
    if world() == 1:
        return text.sentence, text.present, 0
    # one gather: presence travels as one more column
    mine = torch.cat((text.sentence, text.present.unsqueeze(1).to(text.sentence.dtype)), 1).contiguous()
    found = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(found, mine)
    every = torch.cat(found)
    return every[:, :-1], every[:, -1] > 0, dist.get_rank() * len(mine)
