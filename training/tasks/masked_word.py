"""Masked word prediction: the picture's codes, a caption with blanks, then the words that belong there."""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor

from training.data.sources import Source
from training.tasks.answers import LIKELIEST, answers, asked, varied
from training.tasks.captions import TEXT, CaptionTask, caption_rows
from training.tasks.distribution import real_pictures
from training.tasks.task import Column, Judged, Panel, Rows, nats_per_token
from vqkit.models import ABSENT, Segment

WORDS = "words"
# how many words are masked at once, as published
COUNTS = (1, 3)
BLANK = "___"


class MaskedWord(CaptionTask):
    """Sequences [picture, caption with masked words, the words in order]; each caption once with 1 and, where it has as many, once with 3 masked.

    Which words are masked is drawn for each caption and stays the same, in training too; the 3 are the 1 and two more. Punctuation and words
    that training did not have are not masked.

    Metrics: the words' nats a token; `recall@1_of_1` and `recall@1_of_3`: how many words are right of those where 1 or 3 are masked;
    `_foreign`: with the picture of another example, what the text alone tells.

    Published set-up: the decoder of LG-VQ's masked text prediction on the text of the test split, 1 or 3 words masked, recall@1
    CelebA-HQ 99.55 and 99.24, CUB-200 83.65 and 80.17 (LG-VQ, section 4.3). That one transformer learns it as a task of its own, and that
    of 3 words each counts by itself, are our readings.
    """

    name = "masked-word"
    summary = "the masked words of a caption of a picture; recall@1 of 1 and of 3 words"
    gives = "word"
    sampling = LIKELIEST
    columns = (
        Column("nats a word", "words_nats_per_token", ".3f"), Column("recall@1 of 1", "recall@1_of_1", ".1%"),
        Column("foreign, of 1", "recall@1_of_1_foreign", ".1%"), Column("recall@1 of 3", "recall@1_of_3", ".1%"),
        Column("foreign, of 3", "recall@1_of_3_foreign", ".1%"))
    note = "Foreign: with the picture of another example, what the text alone tells."

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (self.pictures.segment(predicted=False), self.text_segment(predicted=False),
                Segment(WORDS, max(COUNTS), (len(self.vocabulary),), predicted=True))

    def rows(self, source: Source) -> Rows:
        """A caption once for each number of masked words that it has; none of a caption without a word."""
        pictures, captions = caption_rows(source, every=True)
        kept, texts, words, about, maskable = [], [], [], [], self._maskable()
        encoded = self.encode_texts(captions).tolist()
        for picture, caption, tokens in zip(pictures.tolist(), captions, encoded, strict=True):
            places = [place for place, token in enumerate(tokens) if token in maskable]
            # by picture and text, not by number: the same whatever part of the split is looked at
            order = random.Random(f"{source.record(picture)['file_name']}/{caption}").sample(places, len(places))
            for count in COUNTS:
                if len(order) < count:
                    continue
                chosen = sorted(order[:count])
                kept.append(picture)
                texts.append([self.vocabulary.mask if place in chosen else token for place, token in enumerate(tokens)])
                words.append([tokens[place] for place in chosen] + [ABSENT] * (max(COUNTS) - count))
                about.append({"caption": caption, "masked": count})
        if not kept:
            raise ValueError(f"data: {source.name} has no captions with a word")
        return Rows(torch.tensor(kept), {TEXT: torch.tensor(texts), WORDS: torch.tensor(words)}, about)

    def measure(self, judged: Judged) -> dict[str, float]:
        true = judged.examples.rows.tokens[WORDS]
        masked = torch.tensor([fact["masked"] for fact in judged.examples.rows.about])
        found = nats_per_token(judged)
        for name, foreign in (("", False), ("_foreign", True)):
            right = (answers(judged, foreign_pictures=foreign)[WORDS] == true).double().sum(1) / masked
            found |= {f"recall@1_of_{count}{name}": right[masked == count].mean().item() for count in COUNTS if bool((masked == count).any())}
        return found

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The picture, the caption with blanks, the words given for them, and after "/" the right ones. Prompts are captions with 1 to 3 "___"."""
        examples = asked(judged, *self._blanks(prompts)) if prompts else varied(judged, count)
        judged = dataclasses.replace(judged, examples=examples)
        given, pictures = answers(judged)[WORDS], real_pictures(judged, self.pictures, torch.arange(len(examples)))
        texts = [text.replace("[mask]", BLANK) for text in self.vocabulary.decode(examples.rows.tokens[TEXT])]
        panels = []
        for number, (picture, text, fact) in enumerate(zip(pictures, texts, examples.rows.about, strict=True)):
            said = ", ".join(self._words(given[number, : fact["masked"]]))
            right = "" if prompts else " / " + ", ".join(self._words(examples.rows.tokens[WORDS][number, : fact["masked"]]))
            panels.append(Panel([picture], f"{text}\n{said}{right}"))
        return panels

    def _blanks(self, prompts: list[str]) -> tuple[dict[str, Tensor], list[dict]]:
        rows, about = [], []
        for prompt in prompts:
            pieces = prompt.split(BLANK)
            if not 1 <= len(pieces) - 1 <= max(COUNTS):
                raise ValueError(f'prompt: expected a caption with 1 to {max(COUNTS)} "{BLANK}", got {prompt!r}')
            tokens = self.vocabulary.ids(pieces[0])
            for piece in pieces[1:]:
                tokens += [self.vocabulary.mask, *self.vocabulary.ids(piece)]
            tokens = [*tokens, self.vocabulary.end][: self.learned["length"]]
            if tokens.count(self.vocabulary.mask) < len(pieces) - 1:
                raise ValueError(f"prompt: expected all blanks in the first {self.learned['length']} tokens, got {prompt!r}")
            rows.append(tokens + [ABSENT] * (self.learned["length"] - len(tokens)))
            about.append({"masked": len(pieces) - 1})
        return {TEXT: torch.tensor(rows)}, about

    def _maskable(self) -> set[int]:
        """Words of training with a letter or a digit."""
        own = {self.vocabulary.unknown, self.vocabulary.end, self.vocabulary.mask}
        words = {token: word for token, word in enumerate(self._words(torch.arange(len(self.vocabulary))))}
        return {token for token, word in words.items() if token not in own and any(map(str.isalnum, word))}

    def _words(self, tokens: Tensor) -> list[str]:
        return [self.vocabulary.decode(token.reshape(1, 1))[0] for token in tokens]
