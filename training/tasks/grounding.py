"""Visual grounding: the picture's codes, a phrase, then the box of what it means."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from training.data.regions import phrases_of, regions_of
from training.data.sources import Source
from training.tasks.answers import LIKELIEST, answers, asked, varied
from training.tasks.distribution import real_pictures
from training.tasks.task import Column, Judged, Panel, Rows, nats_per_token
from training.tasks.text_task import TextTask, learn_texts
from vqkit.metrics.grounding import box_iou, grounding_accuracy
from vqkit.models import Segment

PHRASE, BOX = "phrase", "box"
BINS = 64


class Grounding(TextTask):
    """Sequences [picture, phrase, box]; phrases that mean exactly one box.

    A box is four tokens x0, y0, x1, y1, each round(63 f) of the fraction f of the picture's side: on average 0.4 % of the side away.

    Metrics: the box's nats a token; `accuracy@0.5`, boxes that share at least half of their union with the right one; `mean_iou`;
    `accuracy@0.5_foreign`, with the picture of another example: what the phrase alone tells; `accuracy@0.5_quantised`: of the right boxes as
    tokens, the ceiling.

    Published set-up: codes and text through a transformer with a regressed box in the style of TransVG, refcoco: accuracy@0.5 VQ-GAN 9.14,
    with LG 9.62 (LG-VQ, section 4.3), VQCT 9.46, VQCT-VLT 10.44. A box as tokens of the same transformer is Pix2Seq's form (Chen et al.,
    arXiv 2109.10852, section 2.1), here our reading; that a box drawn inside out is turned right is ours.
    """

    name = "grounding"
    summary = "the box of what a phrase means in a picture; accuracy@0.5, mean IoU"
    gives = "box"
    sampling = LIKELIEST
    columns = (
        Column("nats a token", "box_nats_per_token", ".3f"), Column("accuracy@0.5", "accuracy@0.5", ".1%"),
        Column("foreign", "accuracy@0.5_foreign", ".1%"), Column("mean IoU", "mean_iou", ".3f"))
    note = "Foreign: with the picture of another example, what the phrase alone tells."

    @classmethod
    def learn(cls, source: Source) -> dict:
        """The words of all phrases with one box; which of the boxes are shown depends on how pictures are cut."""
        phrases = [phrase for index in range(len(source)) for phrase in phrases_of(source, index)]
        if not phrases:
            raise ValueError(f'data: {source.name} has no phrases with a box; expected a metadata.jsonl with "regions" of its pictures, each with '
                             '"phrases" and "boxes"')
        return learn_texts(phrases) | {"bins": BINS}

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (self.pictures.segment(predicted=False), Segment(PHRASE, self.learned["length"], (len(self.vocabulary),)),
                Segment(BOX, 4, (self.learned["bins"],), predicted=True))

    def rows(self, source: Source) -> Rows:
        """Every phrase of every region with one box."""
        pictures, about = [], []
        for index in range(len(source)):
            for region in regions_of(source, index, self.pictures.resolution, self.pictures.fit):
                pictures += [index] * len(region.phrases)
                about += [{"phrase": phrase, "type": region.kind, "box": list(region.box)} for phrase in region.phrases]
        if not about:
            raise ValueError(f"data: {source.name} has no phrases with a box")
        tokens = {PHRASE: self.encode_texts([fact["phrase"] for fact in about]), BOX: self.quantised(torch.tensor([fact["box"] for fact in about]))}
        return Rows(torch.tensor(pictures), tokens, about)

    def quantised(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) as fractions to tokens int64 (N, 4)."""
        return (boxes.double() * (self.learned["bins"] - 1)).round().long().clamp(0, self.learned["bins"] - 1)

    def boxes(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (N, 4) to boxes as fractions, float64 (N, 4), each from its upper left to its lower right corner."""
        corners = (tokens.double() / (self.learned["bins"] - 1)).unflatten(1, (2, 2))
        return torch.cat((corners.amin(1), corners.amax(1)), 1)

    def measure(self, judged: Judged) -> dict[str, float]:
        true = torch.tensor([fact["box"] for fact in judged.examples.rows.about], dtype=torch.float64)
        drawn, blind = (self.boxes(answers(judged, foreign_pictures=foreign)[BOX]) for foreign in (False, True))
        return nats_per_token(judged) | {
            "accuracy@0.5": grounding_accuracy(drawn, true), "mean_iou": box_iou(drawn, true).mean().item(),
            "accuracy@0.5_foreign": grounding_accuracy(blind, true),
            "accuracy@0.5_quantised": grounding_accuracy(self.boxes(judged.examples.rows.tokens[BOX]), true),
        }

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The picture with the box that is found and the right one, and the phrase. Prompts are phrases, of the first pictures in turn."""
        examples = varied(judged, count)
        if prompts:
            examples = asked(judged, {PHRASE: self.encode_texts(prompts)}, [{"phrase": prompt, "box": None} for prompt in prompts])
        judged = dataclasses.replace(judged, examples=examples)
        found = self.boxes(answers(judged)[BOX]).tolist()
        pictures = real_pictures(judged, self.pictures, torch.arange(len(examples)))
        panels = []
        for picture, fact, box in zip(pictures, examples.rows.about, found, strict=True):
            right = [(0, fact["box"], "right")] if fact["box"] is not None else []
            panels.append(Panel([picture], fact["phrase"], [(0, box, "found"), *right]))
        return panels
