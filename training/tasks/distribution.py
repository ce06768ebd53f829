"""Pictures that a prior generates for the examples of a split, and how far their distribution is from that of real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from training.data.batches import to_uint8
from training.priors.codes import PictureFormat
from training.tasks.task import IMAGE, Column, Judged
from vqkit.metrics import PictureFeatures, PictureSet, compare_pictures
from vqkit.models import ABSENT

# what tables show of `PictureDistances`
DISTANCES = (Column("FID", "fid", ".2f"), Column("FD(net)", "fd_net", ".4f"), Column("precision(net)", "precision_net", ".1%"),
             Column("recall(net)", "recall_net", ".1%"))
# of the tokens of some examples what the prior is given of them
Given = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def nothing(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """No condition, and as many pictures as there are examples."""
    return {IMAGE: torch.full_like(tokens[IMAGE], ABSENT)}


def decoded(judged: Judged, pictures: PictureFormat, tokens: Tensor) -> Tensor:
    """A picture segment's tokens (B, h w[, S]) as pictures, uint8 (B, 3, R, R) on the CPU: rounded, as a file holds them."""
    with torch.no_grad():
        return to_uint8(judged.tokenizer.decode(pictures.to_map(tokens.to(judged.device))))


def real_pictures(judged: Judged, pictures: PictureFormat, numbers: Tensor) -> Tensor:
    """The pictures of some examples as the tokenizer was given them, uint8 (B, 3, R, R)."""
    indices = judged.examples.rows.pictures[numbers.cpu()].tolist()
    read = [judged.source.read(index, pictures.resolution, pictures.fit) for index in indices]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).contiguous()


def generated(judged: Judged, pictures: PictureFormat, given: Given) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers (B,), pictures uint8 (B, 3, R, R)), one for each example from what is given of it, in the split's order."""
    generator = judged.generator()
    for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "generate"):
        drawn = judged.draw(given(tokens), generator)[IMAGE]
        yield numbers, decoded(judged, pictures, drawn)


def one_each(judged: Judged) -> Judged:
    """With the first example of each picture only, where a picture has several captions."""
    seen: set[int] = set()
    kept = [number for number, picture in enumerate(judged.examples.rows.pictures.tolist()) if not (picture in seen or seen.add(picture))]
    return dataclasses.replace(judged, examples=judged.examples.where(torch.tensor(kept)))


class PictureDistances:
    """Real and generated pictures, gathered batch by batch, and how far the ones are from the others by each feature network.

    What the numbers are called is the network's to say: FID is Inception's with the published weights and no other's.
    """

    def __init__(self, networks: tuple[PictureFeatures, ...]):
        self.sets = [(PictureSet(network), PictureSet(network)) for network in networks]

    def __bool__(self) -> bool:
        """Whether there is any network: without one pictures need not be read for it."""
        return bool(self.sets)

    def add(self, real: Tensor, generated: Tensor) -> None:
        """uint8 (B, 3, R, R) each."""
        for ours, theirs in self.sets:
            ours.add(real)
            theirs.add(generated)

    def result(self) -> dict[str, float]:
        """By the keys that metrics.json has; see `vqkit.metrics.compare_pictures`."""
        found: dict[str, float] = {}
        for real, drawn in self.sets:
            found |= compare_pictures(real, drawn)
        return found


def picture_metrics(judged: Judged, pictures: PictureFormat, given: Given) -> dict[str, float]:
    """The distances of one generated picture for each real one from the real ones, by `judged.features`; nothing without."""
    if not judged.features:
        return {}
    judged, distances = one_each(judged), PictureDistances(judged.features)
    for numbers, drawn in generated(judged, pictures, given):
        distances.add(real_pictures(judged, pictures, numbers), drawn)
    return distances.result()
