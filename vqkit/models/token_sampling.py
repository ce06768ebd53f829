"""Drawing the next token from logits: temperature, the k likeliest, the nucleus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: divides the logits; 0 takes the likeliest.
    top_k: only the k likeliest tokens; 0 keeps all.
    top_p: only the likeliest tokens whose probabilities first reach p together (the nucleus, Holtzman et al., arXiv 1904.09751).
    guidance: s of classifier-free guidance, logits = u + s (c - u), from those with and without the condition; 1 is plain sampling
        (Ho and Salimans, arXiv 2207.12598). The model has to be trained with `condition_dropout`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 < top_p <= 1, got {self.top_p}")
        if self.guidance < 0:
            raise ValueError(f"guidance: expected 0 or more, got {self.guidance}")

    def guided(self, logits: Tensor) -> Tensor:
        """Logits (2 B, ...), those with the condition first, to (B, ...)."""
        conditional, free = logits.chunk(2)
        return conditional if self.guidance == 1 else free + self.guidance * (conditional - free)

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Tokens (...) int64 of logits (..., V)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = self.filtered(logits).softmax(-1)
        drawn = torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1, generator=generator)
        return drawn.reshape(logits.shape[:-1])

    def filtered(self, logits: Tensor) -> Tensor:
        """Logits (..., V) over the temperature in fp32, minus infinity where a token is not drawn."""
        logits = logits.float() / (self.temperature or 1.0)
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(-1)
            # the token that reaches p belongs to the nucleus: only what lies before a token decides
            outside = probabilities.cumsum(-1) - probabilities >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        return logits
