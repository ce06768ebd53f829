"""What every prior over tokens is: segments embedded in one sequence, and a loss and samples over those that are predicted."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqkit.models.pretrained import PretrainedModel
from vqkit.models.segments import ABSENT, Segment, TokenLayout
from vqkit.models.token_sampling import Sampling


class TokenEmbedding(nn.Module):
    """Tokens of all segments to vectors (B, T, width), with a learned vector for each position.

    A position's vector is the mean of the vectors of the tokens that each part selects, the parts side by side through one linear map
    where there are several: VQCT's adjective and noun embeddings, concatenated and projected. -1 has a learned vector of its own.
    Segments of the same name share nothing with others.
    """

    def __init__(self, layout: TokenLayout, width: int):
        super().__init__()
        self.layout = layout
        # one row more, the last: what -1 means
        self.tables = nn.ModuleDict({
            segment.name: nn.ModuleList(nn.Embedding(size + 1, width) for size in segment.sizes) for segment in layout.segments})
        self.mixers = nn.ModuleDict({segment.name: nn.Linear(len(segment.sizes) * width, width)
                                     for segment in layout.segments if len(segment.sizes) > 1})
        self.positions = nn.Parameter(torch.empty(layout.length, width))
        nn.init.normal_(self.positions, std=0.02)
        for table in self.tables.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """Columns (B, length, S) of every segment, in the layout's order."""
        return torch.cat([self.embed(segment, columns[segment.name]) for segment in self.layout.segments], 1)

    def embed(self, segment: Segment, columns: Tensor, first: int = 0) -> Tensor:
        """(B, t, S), the positions from `first` on of one segment, to (B, t, width)."""
        parts = []
        for table, tokens in zip(self.tables[segment.name], columns.split(segment.selections, -1), strict=True):
            rows = torch.where(tokens < 0, table.num_embeddings - 1, tokens)
            parts.append(table(rows).mean(-2))
        x = parts[0] if len(parts) == 1 else self.mixers[segment.name](torch.cat(parts, -1))
        start = self.layout.spans[segment.name].start + first
        return x + self.positions[start : start + columns.shape[1]]


class TokenPrior(PretrainedModel):
    """A distribution over the predicted segments of a sequence, given the others.

    Tokens are a dict of every segment's name to int64 (B, length[, S]), see `Segment`; -1 where there is none. Attributes:
        layout: the segments.  settings: the `Config`.
    """

    def __init__(self, segments: tuple[Segment, ...], settings: Any):
        described = dataclasses.asdict(settings) | {"segments": [dataclasses.asdict(segment) for segment in segments]}
        super().__init__(described)
        self.layout, self.settings = TokenLayout(segments), settings

    @classmethod
    def create(cls, segments: tuple[Segment, ...] = (), **config) -> Self:
        """A model with fresh weights for these segments; `config` are fields of `Config`."""
        return cls(tuple(segments), cls.parse(config))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        settings = {key: value for key, value in config.items() if key != "segments"}
        return cls(tuple(Segment(**segment) for segment in config["segments"]), cls.parse(settings))

    @abstractmethod
    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar, and its terms by segment, in nats a position."""

    @abstractmethod
    def log_likelihood(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """log p of each predicted segment given what comes before it, (B,) float32 in nats, or a bound on it: see the model."""

    @abstractmethod
    def generate(
        self,
        tokens: dict[str, Tensor],
        sampling: Sampling | dict[str, Sampling] = Sampling(),
        *,
        generator: torch.Generator | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Complete sequences: all segments' tokens, those that were given unchanged.

        tokens: the conditions, and of predicted segments what is known; -1 there is drawn. Predicted segments may be left out.
        sampling: one for all segments, or by segment.
        progress: is called with the number of positions drawn since its last call.
        """

    def training_columns(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns of `forward`; in training all conditions of a fraction of the sequences are absent, for classifier-free guidance."""
        columns, rate = self.layout.columns(tokens), self.settings.condition_dropout
        if not self.training or not rate or not self.layout.conditions:
            return columns
        some = next(iter(columns.values()))
        dropped = torch.rand(len(some), 1, 1, device=some.device) < rate
        return columns | {segment.name: columns[segment.name].masked_fill(dropped, ABSENT) for segment in self.layout.conditions}

    def begin(self, tokens: dict[str, Tensor], sampling: Sampling | dict[str, Sampling]) -> tuple[dict[str, Tensor], bool]:
        """The columns of `generate`, -1 where nothing is known, and whether any segment is drawn with guidance.

        Raises ValueError where no tokens are given, which say how many sequences are wanted.
        """
        if not tokens:
            raise ValueError("tokens: expected at least one segment, whose batch size is that of the samples; "
                             "for samples from nothing give a predicted segment full of -1")
        guided = any(sampling_of(sampling, segment).guidance != 1 for segment in self.layout.predicted)
        return self.layout.columns(tokens, "absent"), guided

    def without_conditions(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same sequences twice, those with the condition first."""
        conditions = {segment.name for segment in self.layout.conditions}
        return {name: torch.cat((value, torch.full_like(value, ABSENT) if name in conditions else value)) for name, value in columns.items()}


def sampling_of(sampling: Sampling | dict[str, Sampling], segment: Segment) -> Sampling:
    """The segment's own, or the default."""
    return sampling if isinstance(sampling, Sampling) else sampling.get(segment.name, Sampling())


def token_heads(layout: TokenLayout, width: int) -> nn.ModuleDict:
    """A linear map to logits for every code of a position, of each predicted segment."""
    return nn.ModuleDict({segment.name: nn.ModuleList(nn.Linear(width, segment.sizes[part]) for part in segment.part_of_stream)
                          for segment in layout.predicted})


def initialize(module: nn.Module) -> None:
    """Linear maps and embeddings from a normal distribution of 0.02, as GPT."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
