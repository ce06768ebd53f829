"""Metrics and panels of tasks with words: of a prior that knows the answers by heart, and of one that knows some of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.sources import SceneSource, open_split
from training.priors.codes import PictureCodes, PictureFormat
from training.priors.drawing import Drawing
from training.tasks import retrieval
from training.tasks.answers import LIKELIEST, answers, varied
from training.tasks.captioning import Captioning
from training.tasks.captions import TEXT, captions_of
from training.tasks.grounding import BOX, Grounding
from training.tasks.masked_word import WORDS, MaskedWord
from training.tasks.retrieval import Retrieval
from training.tasks.task import IMAGE, Examples, Judged
from training.tasks.vqa import ANSWER, Vqa, VqaGenerate
from vqkit.metrics.caption_scores import caption_scores
from vqkit.metrics.grounding import box_iou
from vqkit.models import Sampling, TokenLayout, create_prior

FORMAT = PictureFormat(32, "crop", 2, 3, (128,), (1,))


class ByHeart(torch.nn.Module):
    """Continues each condition with what first followed it in the examples, and anything else with zeros.

    The likelihood of a continuation is exp of minus the number of tokens by which it differs from that.
    """

    def __init__(self, segments, examples):
        super().__init__()
        self.layout, self.weight, self.known = TokenLayout(segments), torch.nn.Parameter(torch.zeros(1)), {}
        tokens = examples.batch(torch.arange(len(examples)))
        for number, key in enumerate(self._keys(tokens)):
            self.known.setdefault(key, {part.name: tokens[part.name][number] for part in self.layout.predicted})

    def _keys(self, tokens):
        return [json.dumps(row) for row in torch.cat([tokens[part.name] for part in self.layout.conditions], 1).tolist()]

    def generate(self, tokens, sampling, *, generator=None, progress=None):
        rows = {part.name: [] for part in self.layout.predicted}
        for key in self._keys(tokens):
            for part in self.layout.predicted:
                rows[part.name].append(self.known[key][part.name].clamp(min=0) if key in self.known else torch.zeros(part.shape, dtype=torch.int64))
        return tokens | {name: torch.stack(found) for name, found in rows.items()}

    def log_likelihood(self, tokens):
        right = self.generate(tokens, None)
        return {part.name: -((right[part.name] != tokens[part.name]) & (tokens[part.name] >= 0)).sum(1).float() for part in self.layout.predicted}


def judged_by_heart(kind, source, known=None):
    """The task, and a prior that knows by heart the first `known` examples of the split, all of them by default."""
    task = kind(FORMAT, kind.learn(source))
    codes = torch.arange(len(source), dtype=torch.int32).unsqueeze(1).expand(-1, 6).contiguous()
    examples = Examples(task.rows(source), PictureCodes(codes, torch.ones(len(source), dtype=torch.bool)))
    prior = ByHeart(task.segments, examples.first(known or len(examples)))
    return task, Judged(prior, None, examples, source, task.sampling, batch_size=7)


@pytest.fixture
def source():
    return SceneSource("val", size=20)


def test_captions_by_heart(source):
    task, judged = judged_by_heart(Captioning, source)
    found = task.measure(judged)
    references = [captions_of(source, picture) for picture in range(20)]
    # all are whole but the longest, which are cut
    said = task.vocabulary.decode(judged.examples.rows.tokens[TEXT][::5])
    expected = caption_scores(said, references)
    assert expected["bleu4"] > 0.95 and {name: found[name] for name in expected} == expected
    others = caption_scores(said, references[10:] + references[:10])
    assert found["bleu4_foreign"] == others["bleu4"] < 0.6 and found["cider_d_foreign"] == others["cider_d"] < 0.3 * found["cider_d"]


@pytest.mark.parametrize("kind", [Vqa, VqaGenerate])
def test_answers_by_heart(source, kind):
    task, judged = judged_by_heart(kind, source)
    found = task.measure(judged)
    assert {name: found[name] for name in ("accuracy", "accuracy_color", "accuracy_location", "accuracy_number")} == {
        "accuracy": 1, "accuracy_color": 1, "accuracy_location": 1, "accuracy_number": 1}
    assert found["answer_nats_per_token"] == 0 and found.get("wups_0.9", 1) == found.get("wups_0.0", 1) == 1
    assert found["accuracy_foreign"] < 0.5


def test_half_of_the_answers_by_heart(source):
    everything = len(judged_by_heart(Vqa, source)[1].examples)
    task, judged = judged_by_heart(Vqa, source, known=everything // 2)
    about = judged.examples.rows.about
    usual = task.learned["answers"][0]
    right = [number < everything // 2 or fact["answer"] == usual for number, fact in enumerate(about)]
    found = task.measure(judged)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    for kind in ("color", "location", "number", "object"):
        assert found[f"accuracy_{kind}"] == pytest.approx(np.mean([ok for ok, fact in zip(right, about, strict=True) if fact["type"] == kind]))


def test_an_answer_that_cannot_be_given_is_wrong(tmp_path):
    for name, answer in (("train", "red"), ("test", "mauve")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
        record = {"file_name": "0.png", "questions": [{"question": "what color?", "answer": answer}]}
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps(record))
    task, _ = judged_by_heart(Vqa, open_split(tmp_path, "train"))
    test = open_split(tmp_path, "test")
    examples = Examples(task.rows(test), PictureCodes(torch.zeros(1, 6, dtype=torch.int32), torch.ones(1, dtype=torch.bool)))
    found = task.measure(Judged(ByHeart(task.segments, examples), None, examples, test, LIKELIEST))
    assert found["accuracy"] == 0 and found["answer_nats_per_token"] == 0


def test_boxes_by_heart(source):
    task, judged = judged_by_heart(Grounding, source)
    found = task.measure(judged)
    true = torch.tensor([fact["box"] for fact in judged.examples.rows.about], dtype=torch.float64)
    overlaps = box_iou(task.boxes(judged.examples.rows.tokens[BOX]), true)
    assert found["mean_iou"] == pytest.approx(overlaps.mean().item()) and found["mean_iou"] > 0.85
    assert found["accuracy@0.5"] == found["accuracy@0.5_quantised"] == 1 and found["accuracy@0.5_foreign"] < 0.2


def test_masked_words_by_heart(source):
    everything = len(judged_by_heart(MaskedWord, source)[1].examples)
    task, judged = judged_by_heart(MaskedWord, source)
    found = task.measure(judged)
    assert found["recall@1_of_1"] == found["recall@1_of_3"] == 1 and found["recall@1_of_1_foreign"] == found["recall@1_of_3_foreign"] == 0
    half, judged = judged_by_heart(MaskedWord, source, known=everything // 2)
    found = half.measure(judged)
    assert found["recall@1_of_1"] == found["recall@1_of_3"] == pytest.approx(0.5, abs=0.01)


def test_of_three_words_each_counts(source):
    task, judged = judged_by_heart(MaskedWord, source)
    for following in judged.prior.known.values():
        following[WORDS][0] = task.vocabulary.end
    found = task.measure(judged)
    assert found["recall@1_of_1"] == 0 and found["recall@1_of_3"] == pytest.approx(2 / 3)


def test_retrieval_orders_by_what_the_picture_adds(source):
    task = Retrieval(FORMAT, Retrieval.learn(source))
    codes = torch.randint(128, (20, 6), dtype=torch.int32)
    examples = Examples(task.rows(source), PictureCodes(codes, torch.ones(20, dtype=torch.bool)))
    shape = {"depth": 1, "width": 16, "heads": 2, "dropout": 0.0}
    pictures, texts = codes[:3].long(), examples.rows.tokens[TEXT][:4]
    for dropout in (0.0, 0.1):
        prior = create_prior("prior", task.segments, condition_dropout=dropout, **shape).eval()
        # far from uniform
        torch.nn.init.normal_(prior.embedding.positions, std=1.0)
        found = retrieval.scores(Judged(prior, None, examples, source, LIKELIEST, batch_size=5), pictures, texts)
        for picture in range(3):
            for text in range(4):
                tokens = {IMAGE: pictures[picture : picture + 1], TEXT: texts[text : text + 1]}
                wanted = prior.log_likelihood(tokens)[TEXT].item()
                if dropout:
                    wanted -= prior.log_likelihood(tokens | {IMAGE: torch.full((1, 6), -1)})[TEXT].item()
                assert found[picture, text].item() == pytest.approx(wanted, abs=1e-4)


def _cyclic(pictures, texts, before=0):
    """Scores (pictures, texts) by which the text p + i is the (i + before)-th of picture p, counted from 0, around the larger number."""
    return -((torch.arange(texts) - torch.arange(pictures).unsqueeze(1) + before) % max(pictures, texts)).double()


def test_recall_is_that_of_pools(monkeypatch):
    source = SceneSource("val", size=250)
    task, judged = judged_by_heart(Retrieval, source)
    sizes = []

    def scored(judged, pictures, texts):
        # the own text is the tenth of each picture in the first pool, the first in the second
        sizes.append(len(texts))
        return _cyclic(len(pictures), len(texts), before=9 if len(sizes) == 1 else 0)

    monkeypatch.setattr(retrieval, "scores", scored)
    found = task.measure(judged)
    assert sizes == [100, 100] and found["pool"] == 100
    assert (found["text_recall@1"], found["text_recall@5"], found["text_recall@10"]) == (0.5, 0.5, 1.0)
    assert found["text_median_rank"] == 5.5 and (found["picture_recall@5"], found["picture_recall@10"]) == (0.5, 1.0)


def test_captions_that_are_the_same_are_all_right():
    texts = torch.tensor([[1, 2], [1, 3], [1, 2]])
    assert retrieval._same(texts).tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_retrieval_needs_exact_likelihoods_and_two_pictures(source):
    task = Retrieval(FORMAT, Retrieval.learn(source))
    examples = Examples(task.rows(source), PictureCodes(torch.zeros(20, 6, dtype=torch.int32), torch.ones(20, dtype=torch.bool)))
    masked = create_prior("masked-prior", task.segments, depth=1, width=16, heads=2)
    with pytest.raises(ValueError, match="likelihoods of an autoregressive prior, got one of masked-prior"):
        task.measure(Judged(masked, None, examples, source, LIKELIEST))
    with pytest.raises(ValueError, match="at least two pictures, got one"):
        task.measure(Judged(masked, None, examples.first(3), source, LIKELIEST))


def test_answers_are_in_the_order_of_the_split_and_foreign_pictures_half_of_it_away(source):
    task, judged = judged_by_heart(Vqa, source)
    true = judged.examples.rows.tokens[ANSWER]
    assert torch.equal(answers(judged)[ANSWER], true)
    count, seen = len(true), []
    judged.prior.generate = lambda tokens, *_, **__: seen.append(tokens[IMAGE][:, 0]) or tokens | {ANSWER: torch.zeros(len(tokens[IMAGE]), 1).long()}
    answers(judged, foreign_pictures=True)
    assert torch.equal(torch.cat(seen), judged.examples.rows.pictures.roll(-(count // 2)))


def test_panels_show_what_was_asked_answered_and_right(source):
    task, judged = judged_by_heart(Vqa, source)
    panels = task.panels(judged, [], 6)
    shown = varied(judged, 6).rows
    assert shown.pictures.tolist() == list(range(6)) and len({fact["type"] for fact in shown.about}) > 1
    assert [panel.text for panel in panels] == [f"{fact['question']}\n{fact['answer']} / {fact['answer']}" for fact in shown.about]
    assert all(np.array_equal(panel.pictures[0].permute(1, 2, 0).numpy(), source.read(number, 32, "crop")) for number, panel in enumerate(panels))
    asked = task.panels(judged, ["how many shapes are there?"] * 2, 6)
    count = [next(entry["answer"] for entry in source.record(picture)["questions"] if entry["type"] == "number") for picture in range(2)]
    assert [panel.text for panel in asked] == [f"how many shapes are there?\n{answer}" for answer in count]

    task, judged = judged_by_heart(Captioning, source)
    caption, reference = task.panels(judged, [], 1)[0].text.split("\n/ ")
    assert caption.replace(" ", "") == reference.replace(" ", "") and reference == source.record(0)["captions"][0]
    with pytest.raises(ValueError, match="captioning takes pictures of the data and no text, got 'a dog'"):
        task.panels(judged, ["a dog"], 1)

    task, judged = judged_by_heart(Grounding, source)
    panel = task.panels(judged, [], 1)[0]
    (_, found, _), (_, right, _) = panel.boxes
    assert [name for *_, name in panel.boxes] == ["found", "right"] and np.abs(np.array(found) - right).max() < 1 / 126 + 1e-9
    phrase = judged.examples.rows.about[0]["phrase"]
    asked = task.panels(judged, [phrase], 1)[0]
    assert asked.text == phrase and asked.boxes == [(0, found, "found")]


def test_panels_of_masked_words(source):
    task, judged = judged_by_heart(MaskedWord, source)
    text, words = task.panels(judged, [], 2)[1].text.split("\n")
    said, right = words.split(" / ")
    fact = varied(judged, 2).rows.about[1]
    assert said == right and text.count("___") == fact["masked"] == len(said.split(", "))
    left = iter(said.split(", "))
    filled = "".join(next(left) if word == "___" else word for word in text.split())
    assert filled == fact["caption"].replace(" ", "")
    rows = judged.examples.rows
    prompt = task.vocabulary.decode(rows.tokens[TEXT][:1])[0].replace("[mask]", "___")
    word = task.vocabulary.decode(rows.tokens[WORDS][:1, :1])[0]
    assert task.panels(judged, [prompt], 1)[0].text == f"{prompt}\n{word}"
    for prompt in ("no blank", "___ ___ ___ ___"):
        with pytest.raises(ValueError, match='prompt: expected a caption with 1 to 3 "___"'):
            task.panels(judged, [prompt], 1)
    with pytest.raises(ValueError, match="prompt: expected all blanks in the first"):
        task.panels(judged, ["word " * 40 + "___"], 1)


def test_panels_of_retrieval(source, monkeypatch):
    task, judged = judged_by_heart(Retrieval, source)
    # text t fits picture t best, then t + 1, then t + 2
    monkeypatch.setattr(retrieval, "scores", lambda judged, pictures, texts: _cyclic(len(pictures), len(texts)))
    first = [source.record(picture)["captions"][0] for picture in range(4)]
    assert task.panels(judged, [], 4)[1].text == f"1. {first[1]} *\n2. {first[2]}\n3. {first[3]}"
    panel = task.panels(judged, ["a red circle"], 4)[0]
    assert len(panel.pictures) == 3 and panel.text == "a red circle"
    assert np.array_equal(panel.pictures[0].permute(1, 2, 0).numpy(), source.read(0, 32, "crop"))


def test_what_is_not_asked_of_drawing_is_the_tasks_own():
    assert Drawing().over(Captioning.sampling) == Sampling(temperature=0)
    assert Drawing(temperature=0.7, guidance=2.0).over(Captioning.sampling) == Sampling(temperature=0.7, guidance=2.0)
    assert dataclasses.replace(Drawing(), top_k=3).over(Sampling(temperature=0.5)) == Sampling(temperature=0.5, top_k=3)
    with pytest.raises(ValueError, match="top_p: expected 0 < top_p <= 1, got 2"):
        Drawing(top_p=2)
