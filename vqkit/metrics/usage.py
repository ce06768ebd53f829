"""How much of a codebook is used: the fraction of codes ever selected, and the perplexity of their frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def count_codes(indices: Tensor, codebook_sizes: Sequence[int], selections: Sequence[int]) -> list[Tensor]:
    """How often each code of each part was selected.

    Args:
        indices: int64, (...) where one code is selected a position (selections (1,)), else (..., S) with
            S = sum(selections): the first selections[0] columns belong to part 0, and so on. -1 marks a masked
            position and is not counted.
        codebook_sizes: K of each part.
        selections: how many codes of each part a position selects.

    Returns one (K,) int64 tensor a part, on the device of `indices`. No indices: zeros.
    Raises ValueError where the last dimension is not S, or an index is not in -1 .. K - 1.
    """
    columns = indices.reshape(-1, 1) if tuple(selections) == (1,) else indices.reshape(-1, indices.shape[-1])
    if columns.shape[1] != sum(selections):
        raise ValueError(f"indices: got {columns.shape[1]} in the last dimension, expected {sum(selections)}")
    counts = []
    for part, size in zip(columns.split(list(selections), dim=1), codebook_sizes, strict=True):
        # one more bin in front for the masked positions
        bins = torch.bincount(_checked(part.reshape(-1), size) + 1, minlength=size + 1)
        counts.append(bins[1:])
    return counts


class CodebookUsage:
    """Counts over a whole split, from which usage and perplexity follow.

        usage = (codes selected at least once, over all parts) / (codes of all parts)
        perplexity = exp(-sum_k p_k log p_k), p_k = counts_k / sum counts; over several parts their mean

    Usage is in 0 .. 1, perplexity in 1 .. K; both are 0 while nothing has been counted.

    Args:
        codebook_sizes: K of each part.

    `add` takes what `Tokenizer.count_codes` or `count_codes` returns; `merge` adds another one's counts; `reduced`
    returns the sum over all ranks by one all-reduce.
    """

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | str = "cpu"):
        self.codebook_sizes = tuple(codebook_sizes)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes: got {self.codebook_sizes}, expected at least one size of at least 1")
        self._counts = torch.zeros(sum(self.codebook_sizes), dtype=torch.int64, device=device)

    @property
    def counts(self) -> tuple[Tensor, ...]:
        """(K,) int64 of each part."""
        return self._counts.split(list(self.codebook_sizes))

    def add(self, counts: Sequence[Tensor]) -> None:
        """Add the counts of one batch, one (K,) tensor a part. Raises ValueError where they do not fit."""
        shapes = [tuple(part.shape) for part in counts]
        if shapes != [(size,) for size in self.codebook_sizes]:
            raise ValueError(f"counts: got shapes {shapes}, expected one (K,) a part with K in {self.codebook_sizes}")
        self._counts += torch.cat(list(counts)).to(self._counts)

    def merge(self, other: CodebookUsage) -> None:
        """Add the counts of another split of the same codebooks."""
        self.add(other.counts)

    def reduced(self) -> CodebookUsage:
        """The counts of all ranks together (a copy; without torch.distributed, of this one)."""
        total = CodebookUsage(self.codebook_sizes, self._counts.device)
        total._counts.copy_(self._counts)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total._counts)
        return total

    @property
    def usage(self) -> float:
        """Fraction of all codes selected at least once, 0 .. 1."""
        return (self._counts > 0).double().mean().item()

    @property
    def part_usages(self) -> tuple[float, ...]:
        """The same of each part alone."""
        return tuple((part > 0).double().mean().item() for part in self.counts)

    @property
    def perplexity(self) -> float:
        """The mean of the parts' perplexities."""
        return sum(self.part_perplexities) / len(self.codebook_sizes)

    @property
    def part_perplexities(self) -> tuple[float, ...]:
        """The perplexity of each part."""
        return tuple(_perplexity(part) for part in self.counts)


def _perplexity(counts: Tensor) -> float:
    selected = counts[counts > 0].double()
    if not len(selected):
        return 0.0
    frequencies = selected / selected.sum()
    return torch.exp(-(frequencies * frequencies.log()).sum()).item()


def _checked(indices: Tensor, size: int) -> Tensor:
    if len(indices) and not -1 <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"indices: got {int(indices.min())} .. {int(indices.max())}, expected -1 .. {size - 1}")
    return indices
