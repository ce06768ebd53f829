"""A rate-adaptive tokenizer measured at several numbers of codes."""

from __future__ import annotations

from torch import Tensor, nn

from training.data.batches import PictureDataset
from training.distributed import Ranks
from training.reconstruction import measure
from vqkit.metrics import count_codes
from vqkit.models import RateAdaptiveTokenizer, TokenizerOutput


class AtRate(nn.Module):
    """The model with so many codes, as `reconstruction.measure` takes a tokenizer."""

    def __init__(self, model: RateAdaptiveTokenizer, rate: int):
        super().__init__()
        self.model, self.rate, self.codebook_sizes = model, rate, (rate,)

    def forward(self, images: Tensor) -> TokenizerOutput:
        return self.model(images, rate=self.rate)

    def count_codes(self, indices: Tensor) -> list[Tensor]:
        return count_codes(indices, self.codebook_sizes, (1,))


def measure_rates(
    model: RateAdaptiveTokenizer, rates: tuple[int, ...], dataset: PictureDataset, ranks: Ranks, **loading: int
) -> dict[str, dict]:
    """The metrics of `reconstruction.measure` at each rate, by the rate as text, as JSON keeps keys. ValueError for a model of one rate.

    loading: batch_size and workers.
    """
    if rates and not isinstance(model, RateAdaptiveTokenizer):
        raise ValueError(f"rates: {model.name} has one number of codes; expected a raq")
    return {str(rate): measure(AtRate(model, rate), dataset, ranks, **loading)[0] for rate in rates}
