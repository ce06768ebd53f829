"""Captions of a split as examples: one of each caption, and the words that a prior knows of the training split."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source, captions_of
from training.tasks.text_task import TextTask, learn_texts
from vqkit.models import Segment

TEXT = "text"


class CaptionTask(TextTask):
    """A task that learns from the captions of its pictures."""

    @classmethod
    def learn(cls, source: Source) -> dict:
        """The words of the captions, as `learn_texts`. Raises ValueError where no picture has a caption."""
        captions = [caption for index in range(len(source)) for caption in captions_of(source, index)]
        if not captions:
            raise ValueError(f'data: {source.name} has no captions; expected a metadata.jsonl with "captions" of its pictures')
        return learn_texts(captions)

    def text_segment(self, *, predicted: bool) -> Segment:
        """A caption as a segment."""
        return Segment(TEXT, self.learned["length"], (len(self.vocabulary),), predicted=predicted, end=self.vocabulary.end)


def caption_rows(source: Source, every: bool) -> tuple[Tensor, list[str]]:
    """(N,) pictures and N captions: every caption with its picture, or the first of each."""
    pairs = [(index, caption) for index in range(len(source)) for caption in captions_of(source, index)[: None if every else 1]]
    if not pairs:
        raise ValueError(f'data: {source.name} has no captions; expected a metadata.jsonl with "captions" of its pictures')
    return torch.tensor([index for index, _ in pairs]), [caption for _, caption in pairs]
