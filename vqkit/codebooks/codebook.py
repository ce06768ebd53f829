"""The contract between a quantizer and its codebook."""

import inspect

from torch import Tensor, nn


class Codebook(nn.Module):
    """Yields the K code vectors of a quantizer and may learn from what was selected.

    A quantizer calls, in this order: ``prepare`` (training only), ``forward`` for the codes, and, after the search,
    ``observe`` (training only). What a step returns is quantized with the codes from before its own ``observe``.

    size: K.  dim: length of a code.
    trained_by_gradient: whether the quantizer adds the codebook loss, whose gradient reaches what ``forward`` returns.
    weighs_updates: whether ``observe`` takes a weight.
    """

    trained_by_gradient = False
    weighs_updates = False

    def __init__(self, size: int, dim: int):
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.size = size
        self.dim = dim

    @classmethod
    def options(cls) -> frozenset[str]:
        """The names of the constructor's keyword arguments, with those of a base class that it passes on through ``**``."""
        names = set()
        for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
        return frozenset(names)

    def forward(self) -> Tensor:
        """The codes, (K, dim)."""
        raise TypeError(f"{type(self).__name__} does not define forward(), which returns the codes (K, dim)")

    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        """Look at the first batch before it is searched: latents (N, dim) detached, valid (N,) bool."""

    def observe(self, latents: Tensor, indices: Tensor) -> None:
        """Learn from a searched batch: latents (N, dim) detached, indices (N,) int64, -1 for rows to leave out.

        A codebook that ``weighs_updates`` has a third argument ``weight=None``, () or (K,): how far this update goes.
        """

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"
