"""Captioning: the picture's codes, then a caption."""

from __future__ import annotations

import torch

from training.data.sources import Source
from training.tasks.answers import LIKELIEST, answers
from training.tasks.captions import TEXT, CaptionTask, caption_rows, captions_of
from training.tasks.distribution import one_each, real_pictures
from training.tasks.task import Column, Judged, Panel, Rows, matching, nats_per_token
from vqkit.metrics.bleu import bleu
from vqkit.metrics.caption_scores import caption_scores
from vqkit.metrics.cider import cider_d
from vqkit.models import Segment


class Captioning(CaptionTask):
    """Sequences [picture, caption]; trained on every caption of a picture.

    Metrics:
        text_nats_per_token: of all captions.  matching: how often a caption is likelier with its picture than with another; 0.5 by chance.
        bleu1 .. bleu4, rouge_l, cider_d and, with WordNet, meteor: of one caption a picture, of the likeliest tokens, against all captions
            of the picture; not times 100.
        bleu4_foreign, cider_d_foreign: of the same captions against those of another picture, which is what a caption reaches that says
            nothing of its picture.

    Published set-up: the codes as a prefix to a pretrained language model in the style of ClipCap, CUB-200 (LG-VQ, section 4.3; VQCT):
    VQ-GAN 1.29 BLEU-4, 33.40 ROUGE-L, 24.47 METEOR, 93.62 CIDEr-D, with LG 1.69, 34.73, 25.78, 102.77; VQCT 1.38, 26.50, 24.63, 98.22.
    Here one transformer learns codes and words from nothing (our reading).
    """

    name = "captioning"
    summary = "a caption of a picture; BLEU, ROUGE-L, METEOR, CIDEr-D"
    gives = "text"
    sampling = LIKELIEST
    columns = (
        Column("nats a token", "text_nats_per_token", ".3f"), Column("matching", "matching", ".1%"), Column("BLEU-4", "bleu4", ".4f"),
        Column("ROUGE-L", "rouge_l", ".4f"), Column("METEOR", "meteor", ".4f"), Column("CIDEr-D", "cider_d", ".4f"),
        Column("CIDEr-D, foreign", "cider_d_foreign", ".4f"))
    note = "Matching: how often a caption is likelier with its own picture than with another; foreign: against the captions of another picture."

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.pictures.segment(predicted=False), self.text_segment(predicted=True)

    def rows(self, source: Source) -> Rows:
        pictures, captions = caption_rows(source, every=True)
        return Rows(pictures, {TEXT: self.encode_texts(captions)},
                    [{"caption": caption} for caption in captions])

    def measure(self, judged: Judged) -> dict[str, float]:
        found = nats_per_token(judged) | {"matching": matching(judged, TEXT)}
        judged = one_each(judged)
        said = self.vocabulary.decode(answers(judged)[TEXT])
        references = [captions_of(judged.source, picture) for picture in judged.examples.rows.pictures.tolist()]
        shift = len(references) // 2
        others = references[shift:] + references[:shift]
        foreign = {"bleu4_foreign": bleu(said, others).corpus[-1], "cider_d_foreign": cider_d(said, others).corpus}
        return found | caption_scores(said, references) | foreign

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The picture, the generated caption, and after "/" one of the data."""
        if prompts:
            raise ValueError(f"prompt: {self.name} takes pictures of the data and no text, got {prompts[0]!r}")
        judged = one_each(judged)
        numbers = torch.arange(min(count, len(judged.examples)))
        tokens = judged.examples.batch(numbers, judged.device)
        said = self.vocabulary.decode(judged.draw({name: tokens[name] for name in tokens if name != TEXT})[TEXT])
        true = [about["caption"] for about in judged.examples.first(count).rows.about]
        return [Panel([picture], f"{caption}\n/ {reference}")
                for picture, caption, reference in zip(real_pictures(judged, self.pictures, numbers), said, true, strict=True)]
