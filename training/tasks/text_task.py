"""What tasks with a text have in common: the words of their training texts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from training.priors.codes import PictureFormat
from training.tasks.task import Task
from vqkit.language.text_vocabulary import TextVocabulary


def learn_texts(texts: list[str], longest: int = 32) -> dict:
    """The words of texts, and how many tokens a text has at most: all but the longest 1 % fit, and never over `longest`."""
    vocabulary = TextVocabulary.build(texts)
    lengths = sorted(len(vocabulary.ids(text)) + 1 for text in texts)
    return {"vocabulary": vocabulary.to_json(), "length": min(lengths[int(0.99 * (len(lengths) - 1))], longest)}


class TextTask(Task):
    """A task that learned the words of its texts as `learn_texts` gives them."""

    def __init__(self, pictures: PictureFormat, learned: dict):
        super().__init__(pictures, learned)
        self.vocabulary = TextVocabulary.from_json(learned["vocabulary"])

    def encode_texts(self, texts: Iterable[str]) -> Tensor:
        """Texts to int64 (N, length) of the learned length."""
        return self.vocabulary.encode(texts, self.learned["length"])
