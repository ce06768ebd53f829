"""What a task is: the segments of its sequences, its examples as tokens, and how well a prior does it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from training.data.sources import Source
from training.priors.codes import PictureCodes, PictureFormat
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
        return self.where(torch.arange(min(count, len(self))))

    def where(self, kept: Tensor) -> Examples:
        """The examples of a bool (N,) or of the indices given."""
        return self.of(self.rows.where(kept))

    def of(self, rows: Rows) -> Examples:
        """Other examples of the same pictures, of those that can be read."""
        return Examples(rows, PictureCodes(self.codes, torch.ones(len(self.codes), dtype=torch.bool)))


@dataclass(frozen=True)
class Judged:
    """What a task's metrics are computed from.

    prior, tokenizer: in eval mode on one device.  examples: of the split.  source: the split itself, for pictures and masks.
    sampling: how tokens are drawn.  batch_size: sequences at once.  seed: of all that is drawn.
    training: reads the examples that the prior was trained on, for what is fitted to them.
    features: networks (`vqkit.metrics.PictureFeatures`) by which distributions of pictures are compared.
    shown: whether drawing shows a progress bar with tokens a second.
    """

    prior: TokenPrior
    tokenizer: Tokenizer
    examples: Examples
    source: Source
    sampling: Sampling
    batch_size: int = 64
    seed: int = 0
    features: tuple[Any, ...] = ()
    training: Callable[[], Examples] | None = None
    shown: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    def draw(self, given: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Sequences completed as `TokenPrior.generate` does; `generator` defaults to a fresh one of the seed."""
        sequences, began, drawn = len(next(iter(given.values()))), time.perf_counter(), 0
        total = sum(segment.length for segment in self.prior.layout.predicted)

        def progress(positions: int) -> None:
            nonlocal drawn
            drawn += positions
            bar.set_postfix_str(f"{drawn * sequences / (time.perf_counter() - began):,.0f} positions/s", refresh=False)
            bar.update(positions)

        with tqdm(total=total, desc=f"{sequences} sequences", unit="position", disable=not self.shown, mininterval=0.5) as bar:
            return self.prior.generate(given, self.sampling, generator=generator or self.generator(), progress=progress)


@dataclass(frozen=True)
class Panel:
    """One example to look at: pictures (3, H, W) uint8 side by side, a line of text, and boxes [x0, y0, x1, y1] as fractions of the
    side, each with the number of its picture and its name."""

    pictures: list[Tensor]
    text: str = ""
    boxes: list[tuple[int, list[float], str]] = field(default_factory=list)


class Column(NamedTuple):
    """Of a table of a task's results: the heading, the key in what `Task.measure` gives, and the format."""

    name: str
    key: str
    form: str


class Task(ABC):
    """One file each. `learned` is what the training split taught (words, classes, answers), as JSON values; it is kept with the run.

    A task is made anew for every use: `Task(pictures, learned)` with what `learn` gave.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    # "picture" where the task generates pictures, else what it gives: "text", "box", "word"
    gives: ClassVar[str]
    # how its tokens are drawn where nothing else is asked for
    sampling: ClassVar[Sampling] = Sampling()
    # what a table shows of `measure`, and what its headings leave unsaid
    columns: ClassVar[tuple[Column, ...]] = ()
    note: ClassVar[str] = ""
    # the task whose priors serve this one too, where that is another: its sequences are the same
    priors_of: ClassVar[str | None] = None

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


def matching(judged: Judged, segment: str, foreign: Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None) -> float:
    """How often a predicted segment is likelier with its own condition than with that of another example; 0.5 by chance.

    The other is half the split away, where several examples share a picture a different one. Conditions are all segments that are
    not predicted. Raises ValueError for a single example.

    foreign: makes the other conditions from the numbers and tokens of some examples, instead of taking those of other examples.
    """
    conditions = [part.name for part in judged.prior.layout.conditions]
    right, count = 0.0, len(judged.examples)
    if count < 2:
        raise ValueError("data: expected at least two examples, to tell whose condition is whose; got one")
    for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "matching"):
        others = foreign(numbers, tokens) if foreign else judged.examples.batch((numbers + count // 2) % count, judged.device)
        own = judged.prior.log_likelihood(tokens)[segment]
        other = judged.prior.log_likelihood(tokens | {name: others[name] for name in conditions})[segment]
        right += ((own > other).double() + 0.5 * (own == other).double()).sum().item()
    return right / count
