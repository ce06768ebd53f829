"""What a sequence of tokens consists of: segments of a class, a text, a map of codes, a box, an answer, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

ABSENT = -1


@dataclass(frozen=True)
class Segment:
    """A stretch of a sequence.

    name: of the segment, unique in a sequence.
    length: positions; a map of h x w codes has h w, row by row.
    sizes: vocabulary of each part of a position: (V,) for words, (K_1, K_2) for the two halves of a product, (K,) * depth for residual
        codes.
    selections: how many tokens of each part a position holds; default one each. VQCT's positions hold 2 adjectives and 1 noun.
    predicted: whether the model learns to continue with it; what is not predicted is a condition.
    end: the token after which nothing more comes in this segment, or None.

    Its tokens are int64 (B, length), or (B, length, S) where S = sum(selections) > 1. -1 is no token: nothing is said there, and nothing
    is learned from it.
    """

    name: str
    length: int
    sizes: tuple[int, ...]
    selections: tuple[int, ...] = ()
    predicted: bool = False
    end: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "selections", tuple(self.selections) or (1,) * len(self.sizes))
        if self.length < 1:
            raise ValueError(f"length: expected at least 1 position in {self.name!r}, got {self.length}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes: expected vocabularies of at least 1 token in {self.name!r}, got {self.sizes}")
        if len(self.selections) != len(self.sizes) or min(self.selections) < 1:
            raise ValueError(f"selections: expected a number for each of the sizes {self.sizes} of {self.name!r}, got {self.selections}")
        if self.end is not None and (self.streams > 1 or not 0 <= self.end < self.sizes[0]):
            raise ValueError(f"end: expected one of the {self.sizes[0]} tokens of {self.name!r}, one a position, got {self.end}")

    @property
    def streams(self) -> int:
        """S, the tokens of a position."""
        return sum(self.selections)

    @property
    def part_of_stream(self) -> tuple[int, ...]:
        """The part that each of the S tokens of a position belongs to."""
        return tuple(part for part, count in enumerate(self.selections) for _ in range(count))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sequence's tokens as they are given: (length,) or (length, S)."""
        return (self.length,) if self.streams == 1 else (self.length, self.streams)

    def columns(self, tokens: Tensor) -> Tensor:
        """Tokens as given to (B, length, S). Raises TypeError or ValueError for others than this segment's."""
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens[{self.name!r}]: expected int64, got {tokens.dtype}")
        if tuple(tokens.shape[1:]) != self.shape or tokens.ndim != 1 + len(self.shape):
            raise ValueError(f"tokens[{self.name!r}]: expected shape (B, {', '.join(map(str, self.shape))}), got {tuple(tokens.shape)}")
        columns = tokens.reshape(len(tokens), self.length, self.streams)
        if not torch.compiler.is_compiling() and columns.numel():
            sizes = torch.tensor([self.sizes[part] for part in self.part_of_stream], device=tokens.device)
            if bool(((columns < ABSENT) | (columns >= sizes)).any()):
                raise ValueError(f"tokens[{self.name!r}]: expected -1 .. K - 1 with K of {self.sizes}, "
                                 f"got {int(columns.min())} .. {int(columns.max())}")
        return columns

    def given(self, columns: Tensor) -> Tensor:
        """(B, length, S) to tokens as they are given; the inverse of `columns`."""
        return columns.reshape(len(columns), *self.shape)


class TokenLayout:
    """The segments of a sequence, in order. `spans` are their positions: predicted ones come after what they are predicted from.

    Raises ValueError for two segments of one name, or where nothing is predicted.
    """

    def __init__(self, segments: Iterable[Segment]):
        self.segments = tuple(segments)
        names = [segment.name for segment in self.segments]
        if len(set(names)) < len(names):
            raise ValueError(f"segments: expected different names, got {', '.join(names)}")
        if not self.predicted:
            raise ValueError(f"segments: expected at least one that is predicted, got {', '.join(names) or 'none'}")
        self.spans, self.length = {}, 0
        for segment in self.segments:
            self.spans[segment.name] = slice(self.length, self.length + segment.length)
            self.length += segment.length

    def __getitem__(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(f"segment: expected one of {', '.join(self.spans)}, got {name!r}")

    @property
    def predicted(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.predicted)

    @property
    def conditions(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if not segment.predicted)

    def columns(self, tokens: dict[str, Tensor], missing: str = "refuse") -> dict[str, Tensor]:
        """Every segment's tokens as (B, length, S), checked; where `missing` is "absent", -1 for segments that are not given.

        Raises KeyError for a segment that is missing or unknown, ValueError where the batches differ.
        """
        for name in tokens:
            self[name]
        batches = {len(value) for value in tokens.values()}
        if len(batches) > 1:
            raise ValueError(f"tokens: expected one batch size, got {sorted(batches)}")
        found = {}
        for segment in self.segments:
            if segment.name in tokens:
                found[segment.name] = segment.columns(tokens[segment.name])
            elif missing == "absent" and tokens:
                some = next(iter(tokens.values()))
                found[segment.name] = some.new_full((len(some), segment.length, segment.streams), ABSENT)
            else:
                raise KeyError(f"tokens: expected {', '.join(self.spans)}, got {', '.join(tokens) or 'none'}")
        return found
