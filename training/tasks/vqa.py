"""Visual question answering: the picture's codes, a question, then the answer: one of those known, or word by word."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections import Counter

import torch
from torch import Tensor

from training.data.sources import Source
from training.priors.codes import PictureFormat
from training.tasks.answers import LIKELIEST, answers, asked, shares, varied
from training.tasks.distribution import real_pictures
from training.tasks.task import Column, Judged, Panel, Rows, nats_per_token
from training.tasks.text_task import TextTask, learn_texts
from vqkit.language.text_vocabulary import TextVocabulary
from vqkit.metrics.vqa import answer_accuracy
from vqkit.metrics.wups import wups
from vqkit.models import ABSENT, Segment

QUESTION, ANSWER = "question", "answer"


class QuestionAnswering(TextTask):
    """Sequences [picture, question, answer]; what an answer is as tokens is the subclass's.

    Metrics:
        answer_nats_per_token: of the answers that can be said as tokens.
        accuracy: whether the answer is the right one, both normalised; accuracy_TYPE: of the questions of a type (color, location,
            number, object) where types are known.
        accuracy_foreign: with the picture of another example: what the question alone tells.
        wups_0.9, wups_0.0: nearly right by WordNet, where it is installed.
    """

    gives = "text"
    sampling = LIKELIEST
    columns = (Column("accuracy", "accuracy", ".1%"), Column("foreign", "accuracy_foreign", ".1%"), Column("WUPS@0.9", "wups_0.9", ".1%"),
               Column("WUPS@0.0", "wups_0.0", ".1%"))
    note = "Foreign: with the picture of another example, what the question alone tells."

    @classmethod
    def learn(cls, source: Source) -> dict:
        questions = _all_questions(source)
        return learn_texts([entry["question"] for _, entry in questions])

    @property
    @abstractmethod
    def answer_segment(self) -> Segment: ...

    @abstractmethod
    def encode_answers(self, texts: list[str]) -> Tensor:
        """Answers to int64 (N, length), -1 where an answer cannot be said."""

    @abstractmethod
    def decode_answers(self, tokens: Tensor) -> list[str]:
        """int64 (N, length) to answers."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.pictures.segment(predicted=False), Segment(QUESTION, self.learned["length"], (len(self.vocabulary),)), self.answer_segment

    def rows(self, source: Source) -> Rows:
        """Every question of every picture."""
        asked_of = _all_questions(source)
        about = [{name: entry.get(name) for name in ("question", "answer", "type")} for _, entry in asked_of]
        tokens = {QUESTION: self.encode_texts(fact["question"] for fact in about), ANSWER: self.encode_answers([fact["answer"] for fact in about])}
        return Rows(torch.tensor([picture for picture, _ in asked_of]), tokens, about)

    def measure(self, judged: Judged) -> dict[str, float]:
        about = judged.examples.rows.about
        true = [fact["answer"] for fact in about]
        given, blind = (self.decode_answers(answers(judged, foreign_pictures=foreign)[ANSWER]) for foreign in (False, True))
        found = nats_per_token(judged) | shares(torch.tensor(answer_accuracy(given, true).each), about, "accuracy")
        found["accuracy_foreign"] = answer_accuracy(blind, true).corpus
        try:
            return found | {f"wups_{threshold}": wups(given, true, threshold).corpus for threshold in (0.9, 0.0)}
        except LookupError:
            # no WordNet, no WUPS
            return found

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The picture, the question, the answer, and after "/" the right one. Prompts are questions, of the first pictures in turn."""
        examples = varied(judged, count)
        if prompts:
            examples = asked(judged, {QUESTION: self.encode_texts(prompts)}, [{"question": prompt, "answer": None} for prompt in prompts])
        judged = dataclasses.replace(judged, examples=examples)
        given = self.decode_answers(answers(judged)[ANSWER])
        pictures = real_pictures(judged, self.pictures, torch.arange(len(examples)))
        return [Panel([picture], f"{fact['question']}\n{answer}" + (f" / {fact['answer']}" if fact["answer"] is not None else ""))
                for picture, fact, answer in zip(pictures, examples.rows.about, given, strict=True)]


class Vqa(QuestionAnswering):
    """The answer is one token among the answers of training: the last state is classified.

    Published set-up: a GPT of 16 layers, 16 heads, 1,024 wide, which is the recipe "gpt", classifies its last state; COCO-QA, 78,736
    questions to train on and 38,948 to test: VQ-GAN accuracy 37.82, WUPS 83.22, with LG 40.97 and 83.56 (LG-VQ, section 4.3); VQCT 40.42
    and 82.06, with LG 40.64 (VQCT). Which threshold their WUPS has is not said; by its size it is 0.0 (our reading). An answer that
    training did not have cannot be given and counts as wrong.
    """

    name = "vqa"
    summary = "one of the answers of training to a question about a picture; accuracy by type, WUPS"

    @classmethod
    def learn(cls, source: Source) -> dict:
        """Answers by how often they occur, the 3,000 most frequent; ties in the order of the alphabet."""
        counts = Counter(entry["answer"].lower().strip() for _, entry in _all_questions(source))
        ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
        return super().learn(source) | {"answers": ordered[:3000]}

    @property
    def answer_segment(self) -> Segment:
        return Segment(ANSWER, 1, (len(self.learned["answers"]),), predicted=True)

    def encode_answers(self, texts: list[str]) -> Tensor:
        numbers = {answer: number for number, answer in enumerate(self.learned["answers"])}
        return torch.tensor([[numbers.get(text.lower().strip(), ABSENT)] for text in texts])

    def decode_answers(self, tokens: Tensor) -> list[str]:
        return [self.learned["answers"][number] for number in tokens[:, 0].tolist()]


class VqaGenerate(QuestionAnswering):
    """The answer is a sequence of words of the training answers, up to an end: any answer made of them can be given.

    The published figures are those of `Vqa`; the generated form is ours.
    """

    name = "vqa-generate"
    summary = "an answer, word by word, to a question about a picture; accuracy by type, WUPS"

    def __init__(self, pictures: PictureFormat, learned: dict):
        super().__init__(pictures, learned)
        self.answer_vocabulary = TextVocabulary.from_json(learned["answers"]["vocabulary"])

    @classmethod
    def learn(cls, source: Source) -> dict:
        return super().learn(source) | {"answers": learn_texts([entry["answer"] for _, entry in _all_questions(source)])}

    @property
    def answer_segment(self) -> Segment:
        vocabulary = self.answer_vocabulary
        return Segment(ANSWER, self.learned["answers"]["length"], (len(vocabulary),), predicted=True, end=vocabulary.end)

    def encode_answers(self, texts: list[str]) -> Tensor:
        tokens = self.answer_vocabulary.encode(texts, self.learned["answers"]["length"])
        return tokens.masked_fill(tokens == self.answer_vocabulary.unknown, ABSENT)

    def decode_answers(self, tokens: Tensor) -> list[str]:
        return self.answer_vocabulary.decode(tokens)


def _all_questions(source: Source) -> list[tuple[int, dict]]:
    """(picture, {"question", "answer", "type" as known}) of a split. Raises ValueError where there is none."""
    found = [(index, entry) for index in range(len(source)) for entry in source.record(index).get("questions") or []
             if str(entry.get("question") or "").strip() and str(entry.get("answer") or "").strip()]
    if not found:
        raise ValueError(f'data: {source.name} has no questions; expected a metadata.jsonl with "questions" of its pictures, '
                         'each with "question" and "answer"')
    return found
