"""Semantic synthesis: the mask's classes, cell by cell, then the picture's codes."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source
from training.linear_classifier import LinearClassifier
from training.tasks.distribution import DISTANCES, PictureDistances, decoded, generated, real_pictures
from training.tasks.masks import learn_mask_classes, mask_rows, painted
from training.tasks.task import IMAGE, Column, Judged, Panel, Rows, Task, matching, nats_per_token
from vqkit.models import ABSENT, Segment

MASK = "mask"


class SemanticSynthesis(Task):
    """Sequences [mask, picture] of h w tokens each; a mask token is the class of most pixels in the cell of one code.

    Pixels of 255 have no class, as data sets commonly mark them; a cell that is mostly of these is -1 and in no accuracy.

    Metrics: the picture's nats a token; `matching`, how often a picture is likelier with its mask than with another; the distance of
    generated from real pictures; `cell_accuracy`, see `CellClassifier`. Published set-up: LG-VQ, section 4.3, and VQCT on CelebA-HQ, a
    sequence of 512 tokens, which is the recipe "gpt" on 16 x 16 codes. How the papers turn masks into 256 tokens is not said; the class
    of most pixels is our reading.
    """

    name = "semantic-synthesis"
    summary = "a picture of a mask; matching and agreement of masks, distance of pictures"
    gives = "picture"
    columns = (
        Column("nats a position", "image_nats_per_token", ".3f"), Column("matching", "matching", ".1%"),
        Column("cell accuracy", "cell_accuracy", ".1%"), Column("foreign", "cell_accuracy_foreign", ".1%"),
        Column("reconstructed", "cell_accuracy_reconstructed", ".1%"), *DISTANCES)
    note = ("Cell accuracy: of generated pictures, whether a cell's colours are those of the class in its mask; foreign: in the mask of "
            "another; reconstructed: of the tokenizer's own pictures.")

    @classmethod
    def learn(cls, source: Source) -> dict:
        return learn_mask_classes(source)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return Segment(MASK, self.pictures.height * self.pictures.width, (self.learned["classes"],)), self.pictures.segment(predicted=True)

    def rows(self, source: Source) -> Rows:
        pictures, grids = mask_rows(source, self.pictures, self.learned["classes"])
        return Rows(pictures, {MASK: grids})

    def measure(self, judged: Judged) -> dict[str, float]:
        """`cell_accuracy` of generated pictures lies between `cell_accuracy_foreign`, the same pictures against the masks of others, which
        is what agreement by chance is, and `cell_accuracy_reconstructed`, the tokenizer's own pictures against theirs."""
        found = nats_per_token(judged) | {"matching": matching(judged, IMAGE)}
        classifier = CellClassifier.fit(judged, self)
        distances, right, count = PictureDistances(judged.features), {"": 0, "_foreign": 0, "_reconstructed": 0}, len(judged.examples)
        for numbers, drawn in generated(judged, self.pictures, lambda tokens: {MASK: tokens[MASK]}):
            tokens = judged.examples.batch(numbers)
            seen = classifier.classes(drawn)
            right[""] += int((seen == tokens[MASK]).sum())
            right["_foreign"] += int((seen == judged.examples.batch((numbers + count // 2) % count)[MASK]).sum())
            right["_reconstructed"] += int((classifier.classes(decoded(judged, self.pictures, tokens[IMAGE])) == tokens[MASK]).sum())
            if distances:
                distances.add(real_pictures(judged, self.pictures, numbers), drawn)
        cells = int((judged.examples.rows.tokens[MASK] != ABSENT).sum())
        return found | {f"cell_accuracy{name}": total / cells for name, total in right.items()} | (distances.result() if distances else {})

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The mask as it was given, the real picture, the generated one."""
        if prompts:
            raise ValueError(f"prompt: {self.name} takes masks of the data and no text, got {prompts[0]!r}")
        examples = judged.examples.first(count)
        numbers = torch.arange(len(examples))
        masks = examples.batch(numbers, judged.device)[MASK]
        drawn = judged.draw({MASK: masks})
        pictures, real = decoded(judged, self.pictures, drawn[IMAGE]), real_pictures(judged, self.pictures, numbers)
        side = self.pictures.resolution
        return [Panel([painted(self.pictures.to_map(mask[None])[0], self.learned["classes"], side), true, picture])
                for mask, true, picture in zip(masks, real, pictures, strict=True)]


class CellClassifier:
    """Tells the class of each cell of a picture from its colours: a linear classifier of their mean and spread and of the cell's place.

    It stands in for the segmentation networks that judge semantic synthesis elsewhere (SPADE, arXiv 1903.07291, section 4). Fitted to the
    real pictures and masks of the split that is judged; what it misses in those no generated picture can show either.
    """

    def __init__(self, linear: LinearClassifier, height: int, width: int):
        self.linear, self.height, self.width = linear, height, width

    @classmethod
    def fit(cls, judged: Judged, task: SemanticSynthesis, most: int = 20_000) -> CellClassifier:
        """By at most `most` cells, of pictures evenly spread over the split."""
        height, width = task.pictures.height, task.pictures.width
        step = max(1, len(judged.examples) * height * width // most)
        numbers = torch.arange(0, len(judged.examples), step)
        features = torch.cat([_cell_features(real_pictures(judged, task.pictures, part), height, width) for part in numbers.split(judged.batch_size)])
        labels = judged.examples.batch(numbers)[MASK].flatten()
        known = labels != ABSENT
        return cls(LinearClassifier.fit(features[known], labels[known], task.learned["classes"]), height, width)

    def classes(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) to int64 (B, h w)."""
        return self.linear.predict(_cell_features(pictures, self.height, self.width)).unflatten(0, (len(pictures), -1))


def _cell_features(pictures: Tensor, height: int, width: int) -> Tensor:
    """(B h w, 8): mean and standard deviation of the three colours, row and column."""
    x = pictures.double() / 255
    mean = torch.nn.functional.adaptive_avg_pool2d(x, (height, width))
    spread = (torch.nn.functional.adaptive_avg_pool2d(x.square(), (height, width)) - mean.square()).clamp(min=0).sqrt()
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height).double(), torch.linspace(0, 1, width).double(), indexing="ij")
    places = torch.stack((rows, columns)).expand(len(x), -1, -1, -1)
    return torch.cat((mean, spread, places), 1).permute(0, 2, 3, 1).flatten(0, 2)
