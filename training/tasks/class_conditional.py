"""Class-conditional generation: a class, then the picture's codes."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source
from training.tasks.distribution import DISTANCES, decoded, picture_metrics
from training.tasks.labels import find_class, label_rows, learn_classes
from training.tasks.task import IMAGE, Column, Judged, Panel, Rows, Task, matching, nats_per_token
from vqkit.models import Segment

CLASS = "class"


class ClassConditional(Task):
    """Sequences [class, picture]; a class is one token before the picture's.

    Metrics: the picture's nats a token; `matching`, how often a picture is likelier with its class than with another class; the distance
    of generated from real pictures, the classes as often as in the split. Source: VIM, arXiv 2110.04627, section 4.3, which is the recipe
    "vim-large" on the codes of a ViT-VQGAN.
    """

    name = "class-conditional"
    summary = "a picture of a class; matching of classes, distance of pictures"
    gives = "picture"
    columns = (Column("nats a position", "image_nats_per_token", ".3f"), Column("matching", "matching", ".1%"), *DISTANCES)
    note = "Matching: how often a picture is likelier with its own class than with another."

    @classmethod
    def learn(cls, source: Source) -> dict:
        return learn_classes(source)

    @property
    def classes(self) -> list[str]:
        return self.learned["classes"]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return Segment(CLASS, 1, (len(self.classes),)), self.pictures.segment(predicted=True)

    def rows(self, source: Source) -> Rows:
        pictures, labels = label_rows(source, self.classes)
        return Rows(pictures, {CLASS: labels.unsqueeze(1)}, [{"label": self.classes[label]} for label in labels.tolist()])

    def measure(self, judged: Judged) -> dict[str, float]:
        found = nats_per_token(judged) | {"matching": matching(judged, IMAGE, self._other_classes)}
        return found | picture_metrics(judged, self.pictures, lambda tokens: {CLASS: tokens[CLASS]})

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """One of each prompt, a class's name; without prompts the classes in turn."""
        names = prompts or [self.classes[number % len(self.classes)] for number in range(count)]
        wanted = torch.tensor([find_class(name, self.classes) for name in names], device=judged.device)
        drawn = judged.draw({CLASS: wanted.unsqueeze(1)})
        pictures = decoded(judged, self.pictures, drawn[IMAGE])
        return [Panel([picture], name) for picture, name in zip(pictures, names, strict=True)]

    def _other_classes(self, numbers: Tensor, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Never the own class: all others in turn, by the example's number, however the split is sorted."""
        step = 1 + numbers.to(tokens[CLASS].device).unsqueeze(1) % (len(self.classes) - 1)
        return {CLASS: (tokens[CLASS] + step) % len(self.classes)}
