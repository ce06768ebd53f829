"""Captioning: the picture's codes, then a caption."""

from __future__ import annotations

from training.sources import Source
from training.picture_codes import PictureFormat
from training.tasks.captions import TEXT, caption_rows, captions_of, learn_captions, text_segment
from training.tasks.task import IMAGE, Judged, Panel, Rows, Task, matching, nats_per_token
from vqkit.language.text_vocabulary import TextVocabulary
from vqkit.models import Segment


class Captioning(Task):
    """Sequences [picture, caption]; trained on every caption of a picture.

    The published set-up gives the codes as a prefix to a pretrained language model (ClipCap); here one transformer learns codes and words
    (our reading). Metrics: nats a token, `matching`, and BLEU, ROUGE-L, METEOR and CIDEr-D of one caption a picture against all of it.
    """

    name = "captioning"
    summary = "a caption of a picture; BLEU, ROUGE-L, METEOR, CIDEr-D"
    gives = "text"

    def __init__(self, pictures: PictureFormat, learned: dict):
        super().__init__(pictures, learned)
        self.vocabulary = TextVocabulary.from_json(learned["vocabulary"])

    @classmethod
    def learn(cls, source: Source) -> dict:
        return learn_captions(source)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.pictures.segment(predicted=False), text_segment(self.vocabulary, self.learned["length"], predicted=True)

    def rows(self, source: Source) -> Rows:
        pictures, captions = caption_rows(source, every=True)
        return Rows(pictures, {TEXT: self.vocabulary.encode(captions, self.learned["length"])},
                    [{"caption": caption} for caption in captions])

    def measure(self, judged: Judged) -> dict[str, float]:
        raise NotImplementedError

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        raise NotImplementedError
