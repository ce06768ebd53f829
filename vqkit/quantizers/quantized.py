"""What a quantizer returns: a triple to unpack, with more to look at."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def usage(counts: Tensor) -> Tensor:
    """Fraction of the codes that were selected at least once, (), from counts (K,)."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies, (), between 1 and K, from counts (K,); 1 when there are none."""
    share = counts / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()


_UNGIVEN: Any = object()


class Quantized(tuple):
    """``quantized, indices, loss = quantizer(x)``, and by name:

    quantized: as the input, with the gradient the quantizer defines.  indices: int64, -1 where masked.
    loss: () weighted sum, ready to be added to a model's loss.  losses: its terms by name, unweighted, each ().
    counts: (K,) int64, how often each code was selected in this batch on this rank. None where there are more codes than can be
        counted, as of some scalar quantizers.
    usage, perplexity: () of these counts, on the device, computed when asked for; None where there are none.
    parts: the result of each part of a product, () for a single quantizer.

    ``Quantized(iterable of three)`` is how wrappers, copy and pickle rebuild a tuple. copy and pickle keep the rest; for wrappers that
    know only tuples, such as FSDP1, losses and counts are then None.
    """

    def __new__(
        cls,
        quantized: Tensor | Iterable[Tensor],
        indices: Tensor = _UNGIVEN,
        loss: Tensor = _UNGIVEN,
        losses: dict[str, Tensor] | None = None,
        counts: Tensor | None = None,
        parts: "tuple[Quantized, ...]" = (),
    ):
        if indices is _UNGIVEN:
            quantized, indices, loss = quantized
        self = super().__new__(cls, (quantized, indices, loss))
        self.losses = losses
        self.counts = counts
        self.parts = parts
        return self

    quantized = property(lambda self: self[0])
    indices = property(lambda self: self[1])
    loss = property(lambda self: self[2])

    @property
    def usage(self) -> Tensor | None:
        return self._mean(usage)

    @property
    def perplexity(self) -> Tensor | None:
        return self._mean(perplexity)

    def _mean(self, measure: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The mean of a measure over the parts, or this result's own."""
        found = [part._mean(measure) for part in self.parts] or [None if self.counts is None else measure(self.counts)]
        return None if any(value is None for value in found) else torch.stack(found).mean()


def _flatten(result: Quantized) -> tuple[list, None]:
    return [*result, result.losses, result.counts, result.parts], None


# So that torch.compile, torch.export and data parallel wrappers see the tensors inside.
pytree.register_pytree_node(Quantized, _flatten, lambda children, _: Quantized(*children), serialized_type_name="vqkit.Quantized")
