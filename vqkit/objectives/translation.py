"""VQCT-VLT: a decoder translates the codes of a picture into its caption.

Source: the vision-to-language translation of VQCT-VLT, of which papers report results and, where we could read it, no architecture. All here
is our reading: a small transformer decoder over the quantised map, trained along with the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.nn.caption_decoder import CaptionDecoder
from vqkit.objectives.text_objective import TextObjective, Tokens, full_precision, mean_over_ranks


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """Weight and shape of the translation. All values are ours."""

    weight: float = 1e-2
    """Of the cross-entropy a token, in the tokenizer's loss."""
    width: int = 256
    """Of the decoder."""
    depth: int = 2
    """Its layers."""
    heads: int = 4
    """Its heads of attention."""
    dropout: float = 0.1
    """In its layers."""

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"weight: expected more than 0, got {self.weight}")
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"width, depth, heads: expected at least 1, and heads to divide width, got {self.width}, {self.depth}, {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")


class TranslationText(NamedTuple):
    """B captions of T tokens: ids int64 (B, T); visible bool (B, T), False for the padding behind; present bool (B,), False without one."""

    ids: Tensor
    visible: Tensor
    present: Tensor


class CaptionTranslation(TextObjective):
    """The surprise of a picture's caption, read off its quantised map token by token; any tokenizer, trained with it.

        L = weight * L_vlt,  L_vlt = mean over pictures i and tokens t > 0 of -log p(w_it | w_i0 .. w_i(t-1), z_i)

    p is `CaptionDecoder`: causal self-attention over the caption, cross-attention to the codes z. Token 0 opens the text and is given,
    the one that closes it is predicted. Padding, and pictures without caption, take part in nothing.

    Args:
        code_dim: D of the map.
        grid: side of the map that position vectors are made for; others get them resized.
        token_embeddings: (V, W), the text model's own, frozen.
        config: weight and shape.
        context: most tokens of a caption.

    Call: quantized (B, D, h, w), text (`read`) -> (loss, terms): weight * L_vlt, and "translation", L_vlt in nats a token. Without any
    caption both are zero, with zero gradients. The gradient reaches the map and this module.

    Under an initialised torch.distributed the mean runs over all ranks (one all-reduce): averaged gradients are those of the whole batch.

    Raises ValueError for a map or texts of another shape.
    """

    kind = "translation"
    Config = TranslationConfig

    def __init__(self, code_dim: int, grid: int, token_embeddings: Tensor, config: TranslationConfig | None = None, context: int = 30):
        super().__init__(code_dim, grid, token_embeddings, config, context)
        shape = {name: getattr(self.config, name) for name in ("width", "depth", "heads", "dropout")}
        self.decoder = CaptionDecoder(code_dim, grid, token_embeddings, context, **shape)

    @staticmethod
    def read(tokens: Tokens) -> TranslationText:
        """What of captions this objective looks at."""
        return TranslationText(tokens.ids, tokens.visible, tokens.present)

    def forward(self, quantized: Tensor, text: TranslationText) -> tuple[Tensor, dict[str, Tensor]]:
        surprises, counts = self.surprises(quantized, text)
        term = surprises.sum() / mean_over_ranks(counts.sum())
        return self.config.weight * term, {"translation": term}

    def surprises(self, quantized: Tensor, text: TranslationText) -> tuple[Tensor, Tensor]:
        """The sum of -log p over the predicted tokens of each caption, (B,) in float32 or better, and their number, int64 (B,)."""
        self._check_map(quantized)
        batch, length = text.ids.shape
        if batch != len(quantized) or not 1 <= length <= self.context:
            raise ValueError(f"text: expected {len(quantized)} texts of 1..{self.context} tokens, got ids {tuple(text.ids.shape)}")
        wanted = text.visible[:, 1:] & text.present.unsqueeze(1)
        logits = full_precision(self.decoder(quantized, text.ids[:, :-1], wanted))
        losses = F.cross_entropy(logits, text.ids[:, 1:][wanted], reduction="none")
        rows = torch.arange(batch, device=losses.device).unsqueeze(1).expand_as(wanted)[wanted]
        return losses.new_zeros(batch).index_add(0, rows, losses), wanted.sum(1)
