"""How tokens are drawn, where the command line may say less than all of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vqkit.models import Sampling


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn; what is not given is the task's own choice: pictures are sampled, texts take the likeliest tokens."""

    temperature: float | None = None
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities first reach p together."""
    guidance: float | None = None
    """Scale of classifier-free guidance, of priors trained with condition dropout; 1 is none."""

    def __post_init__(self):
        self.over(Sampling())

    def over(self, usual: Sampling) -> Sampling:
        """What is given here, and the rest as usual. Raises ValueError as `Sampling` does."""
        return dataclasses.replace(usual, **{name: value for name, value in vars(self).items() if value is not None})
