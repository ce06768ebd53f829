"""A codebook without vectors of its own: its codes come with each call of the quantizer."""

from torch import Tensor

from vqkit.codebooks.codebook import Codebook


class SuppliedCodebook(Codebook):
    """For the parts of a ``ProductQuantizer`` whose shared codebook generates all parts' codes in one pass."""

    trained_by_gradient = True

    def forward(self) -> Tensor:
        raise RuntimeError(
            "this quantizer has no codes of its own: pass them as codes=, (K, D), or call the ProductQuantizer that it is a part of"
        )
