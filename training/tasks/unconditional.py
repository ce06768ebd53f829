"""Unconditional generation: the picture's codes alone."""

from __future__ import annotations

import torch

from training.data.sources import Source
from training.tasks.distribution import DISTANCES, decoded, nothing, picture_metrics
from training.tasks.task import IMAGE, Column, Judged, Panel, Rows, Task, nats_per_token
from vqkit.models import ABSENT, Segment


class Unconditional(Task):
    """Sequences [picture]. Metrics: nats a token; the distance of generated from real pictures."""

    name = "unconditional"
    summary = "pictures like those of the data; likelihood, distance of pictures"
    gives = "picture"
    columns = (Column("nats a position", "image_nats_per_token", ".3f"), *DISTANCES)
    note = ("Distances, here and below, are of one generated picture for each real one; those of (net) by a small network trained on the "
            "data, comparable in one table only.")

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (self.pictures.segment(predicted=True),)

    def rows(self, source: Source) -> Rows:
        return Rows(torch.arange(len(source)))

    def measure(self, judged: Judged) -> dict[str, float]:
        return nats_per_token(judged) | picture_metrics(judged, self.pictures, nothing)

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        if prompts:
            raise ValueError(f"prompt: {self.name} generation takes no text, got {prompts[0]!r}")
        unknown = torch.full((count, *self.segments[0].shape), ABSENT, device=judged.device)
        return [Panel([picture]) for picture in decoded(judged, self.pictures, judged.draw({IMAGE: unknown})[IMAGE])]
