"""What a task is: the segments of its sequences, its examples as tokens, and how well a prior does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from training.picture_codes import PictureCodes, PictureFormat
from training.sources import Source
from vqkit.models import Sampling, Segment, Tokenizer, TokenPrior

IMAGE = "image"


@dataclass(frozen=True)
class Rows:
    """The examples of a split in a fixed order.

    pictures: int64 (N,), the picture of each.  tokens: of every segment but the picture's, int64 (N, length[, S]).
    about: what is known of each that is not in the tokens, for metrics: references, types, boxes.
    """

    pictures: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    about: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def where(self, kept: Tensor) -> Rows:
        """The examples of a bool (N,) or of the indices given."""
        numbers = kept.nonzero().flatten() if kept.dtype == torch.bool else kept
        about = [self.about[number] for number in numbers.tolist()] if self.about else []
        return Rows(self.pictures[numbers], {name: tokens[numbers] for name, tokens in self.tokens.items()}, about)


class Examples:
    """Rows with the codes of their pictures; those whose picture cannot be read are left out."""

    def __init__(self, rows: Rows, codes: PictureCodes):
        self.rows, self.codes = rows.where(codes.readable[rows.pictures]), codes.codes
        if not len(self.rows):
            raise ValueError("data: no example whose picture can be read")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Tensor, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """All segments' tokens of some examples, on the device."""
        tokens = {name: values[numbers].to(device) for name, values in self.rows.tokens.items()}
        return tokens | {IMAGE: self.codes[self.rows.pictures[numbers]].to(device, torch.int64)}

    def batches(self, size: int, device: torch.device | str, description: str) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """(numbers, tokens) of all examples once, in order, with a progress bar."""
        for numbers in tqdm(torch.arange(len(self)).split(size), desc=description, unit="batch", leave=False, mininterval=1):
            yield numbers, self.batch(numbers, device)

    def first(self, count: int) -> Examples:
        """The first examples only."""
        return Examples(self.rows.where(torch.arange(min(count, len(self)))), PictureCodes(self.codes, torch.ones(len(self.codes), dtype=torch.bool)))


@dataclass(frozen=True)
class Judged:
    """What a task's metrics are computed from.

    prior, tokenizer: in eval mode on one device.  examples: of the split.  source: the split itself, for pictures and masks.
    sampling: how tokens are drawn.  batch_size: sequences at once.  seed: of all that is drawn.
    features: a feature network of pictures, by which distributions are compared, or None.
    """

    prior: TokenPrior
    tokenizer: Tokenizer
    examples: Examples
    source: Source
    sampling: Sampling
    batch_size: int = 64
    seed: int = 0
    features: Any = None

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)


@dataclass(frozen=True)
class Panel:
    """One example to look at: pictures (3, H, W) uint8 side by side, a line of text, and boxes [x0, y0, x1, y1] as fractions of the
    side, each with the number of its picture and its name."""

    pictures: list[Tensor]
    text: str = ""
    boxes: list[tuple[int, list[float], str]] = field(default_factory=list)


class Task(ABC):
    """One file each. `learned` is what the training split taught (words, classes, answers), as JSON values; it is kept with the run.

    A task is made anew for every use: `Task(pictures, learned)` with what `learn` gave.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    # "picture" where the task generates pictures, else what it gives: "text", "box", "word"
    gives: ClassVar[str]

    def __init__(self, pictures: PictureFormat, learned: dict[str, Any]):
        self.pictures, self.learned = pictures, learned

    @classmethod
    def learn(cls, source: Source) -> dict[str, Any]:
        """What the training split teaches. Raises ValueError where it lacks what the task needs, naming it."""
        return {}

    @property
    @abstractmethod
    def segments(self) -> tuple[Segment, ...]:
        """In the order of the sequence; the picture's is named "image"."""

    @abstractmethod
    def rows(self, source: Source) -> Rows:
        """The examples of a split."""

    @abstractmethod
    def measure(self, judged: Judged) -> dict[str, float]:
        """The task's own metrics, by the names that metrics.json has."""

    @abstractmethod
    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """Examples to look at: of the prompts where the task takes texts, else the first `count` of the split.

        Raises ValueError for prompts where the task takes none.
        """


def nats_per_token(judged: Judged) -> dict[str, float]:
    """The negative log-likelihood of each predicted segment in nats a token, over all its tokens of the split."""
    totals: dict[str, list[float]] = {}
    for _, tokens in judged.examples.batches(judged.batch_size, judged.device, "likelihood"):
        for name, found in judged.prior.log_likelihood(tokens).items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] -= found.double().sum().item()
            total[1] += int((tokens[name] >= 0).sum())
    return {f"{name}_nats_per_token": nats / max(count, 1) for name, (nats, count) in totals.items()}


def matching(judged: Judged, segment: str) -> float:
    """How often a predicted segment is likelier with its own condition than with that of another example; 0.5 by chance.

    The other is half the split away, where several examples share a picture a different one. Conditions are all segments that are
    not predicted. Raises ValueError for a single example.
    """
    conditions = [part.name for part in judged.prior.layout.conditions]
    right, count = 0.0, len(judged.examples)
    if count < 2:
        raise ValueError("data: expected at least two examples, to tell whose condition is whose; got one")
    for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "matching"):
        others = judged.examples.batch((numbers + count // 2) % count, judged.device)
        own = judged.prior.log_likelihood(tokens)[segment]
        foreign = judged.prior.log_likelihood(tokens | {name: others[name] for name in conditions})[segment]
        right += ((own > foreign).double() + 0.5 * (own == foreign).double()).sum().item()
    return right / count
