"""Text to image: a caption, then the picture's codes."""

from __future__ import annotations

from training.data.sources import Source
from training.tasks.captions import TEXT, CaptionTask, caption_rows
from training.tasks.distribution import DISTANCES, decoded, one_each, picture_metrics
from training.tasks.task import IMAGE, Column, Judged, Panel, Rows, matching, nats_per_token
from vqkit.models import Segment


class TextToImage(CaptionTask):
    """Sequences [caption, picture]; trained on every caption of a picture.

    Metrics: the picture's nats a token; `matching`, how often a picture is likelier with its caption than with another; the distance of
    generated from real pictures. Published set-up: VQ-Diffusion on CelebA-HQ (LG-VQ, section 4.3), which is the recipe "vq-diffusion".
    """

    name = "text-to-image"
    summary = "a picture of a caption; matching of captions, distance of pictures"
    gives = "picture"
    columns = (Column("nats a position", "image_nats_per_token", ".3f"), Column("matching", "matching", ".1%"), *DISTANCES)
    note = "Matching: how often a picture is likelier with its own caption than with another."

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.text_segment(predicted=False), self.pictures.segment(predicted=True)

    def rows(self, source: Source) -> Rows:
        pictures, captions = caption_rows(source, every=True)
        return Rows(pictures, {TEXT: self.encode_texts(captions)}, [{"caption": caption} for caption in captions])

    def measure(self, judged: Judged) -> dict[str, float]:
        found = nats_per_token(judged) | {"matching": matching(judged, IMAGE)}
        return found | picture_metrics(judged, self.pictures, lambda tokens: {TEXT: tokens[TEXT]})

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        texts = prompts or [about["caption"] for about in one_each(judged).examples.first(count).rows.about]
        drawn = judged.draw({TEXT: self.encode_texts(texts).to(judged.device)})
        pictures = decoded(judged, self.pictures, drawn[IMAGE])
        return [Panel([picture], text) for picture, text in zip(pictures, texts, strict=True)]
