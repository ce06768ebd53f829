"""The contract between a quantizer and its codebook."""

from torch import Tensor, nn


class Codebook(nn.Module):
    """Yields the K code vectors of a quantizer and may learn from what was selected.

    A quantizer calls, in this order: ``prepare`` (training only), ``forward`` for the codes, and, after the search,
    ``observe`` (training only). What a step returns is quantized with the codes from before its own ``observe``.

    size: K.  dim: length of a code.
    trained_by_gradient: whether the quantizer adds the codebook loss, whose gradient reaches what ``forward`` returns.
    """

    trained_by_gradient = False

    def __init__(self, size: int, dim: int):
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.size = size
        self.dim = dim

    def forward(self) -> Tensor:
        """The codes, (K, dim)."""
        raise TypeError(f"{type(self).__name__} does not define forward(), which returns the codes (K, dim)")

    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        """Look at the first batch before it is searched: latents (N, dim) detached, valid (N,) bool."""

    def observe(self, latents: Tensor, indices: Tensor) -> None:
        """Learn from a searched batch: latents (N, dim) detached, indices (N,) int64, -1 for rows to leave out."""

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"
