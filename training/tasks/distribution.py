"""How far the distribution of generated pictures is from that of real ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.picture_codes import PictureFormat
from training.tasks.task import IMAGE, Judged
from vqkit.models import ABSENT


def generated(judged: Judged, pictures: PictureFormat, conditions: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers (B,), pictures (B, 3, R, R) in [-1, 1]), one for each example from its conditions, in the split's order."""
    generator = judged.generator()
    for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "generate"):
        given = {name: tokens[name] for name in conditions} or {IMAGE: torch.full_like(tokens[IMAGE], ABSENT)}
        drawn = judged.prior.generate(given, judged.sampling, generator=generator)[IMAGE]
        yield numbers, judged.tokenizer.decode(pictures.to_map(drawn))


def picture_metrics(judged: Judged, pictures: PictureFormat, conditions: tuple[str, ...]) -> dict[str, float]:
    """The distances of as many generated pictures as there are examples from the examples' own, by `judged.features`; none without."""
    if judged.features is None:
        return {}
    raise NotImplementedError
