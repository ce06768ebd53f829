"""Rows of tasks with words: what the data says is what the tokens say, boxes follow the cut of the picture, and what is missing is named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.regions import regions_of, shown_box
from training.data.rendering import render
from training.data.scenes import sample_scene
from training.data.sources import SceneSource, open_split
from training.priors.codes import PictureFormat
from training.tasks.captioning import Captioning
from training.tasks.captions import TEXT
from training.tasks.grounding import BOX, PHRASE, Grounding
from training.tasks.masked_word import WORDS, MaskedWord
from training.tasks.retrieval import Retrieval
from training.tasks.text_task import learn_texts
from training.tasks.vqa import ANSWER, QUESTION, Vqa, VqaGenerate
from vqkit.models import Segment

FORMAT = PictureFormat(32, "crop", 2, 3, (8, 5), (2, 1))


@pytest.fixture
def split(tmp_path):
    """split(name, records, pictures=None): a split of such records; pictures are grey where none are given."""

    def make(name, records, pictures=None):
        (tmp_path / name).mkdir()
        for number in range(len(records)):
            (pictures[number] if pictures else Image.new("RGB", (16, 16), "grey")).save(tmp_path / name / f"{number}.png")
        lines = [json.dumps({"file_name": f"{number}.png"} | record) for number, record in enumerate(records)]
        (tmp_path / name / "metadata.jsonl").write_text("\n".join(lines))
        return open_split(tmp_path, name)

    return make


def of(kind, source, pictures=FORMAT):
    return kind(pictures, kind.learn(source))


def test_captions_come_after_the_picture_and_end():
    source = SceneSource("val", size=12)
    task = of(Captioning, source)
    image, text = task.segments
    assert image == Segment("image", 6, (8, 5), (2, 1)) and text.predicted and text.end == task.vocabulary.end
    rows = task.rows(source)
    assert rows.pictures.tolist() == [picture for picture in range(12) for _ in range(5)]
    said = [caption for picture in range(12) for caption in source.record(picture)["captions"]]
    assert [about["caption"] for about in rows.about] == said
    whole = (rows.tokens[TEXT] == task.vocabulary.end).any(1)
    assert whole.double().mean() > 0.95
    decoded = task.vocabulary.decode(rows.tokens[TEXT])
    assert all(one.replace(" ", "") == other.replace(" ", "") for one, other, fits in zip(decoded, said, whole.tolist(), strict=True) if fits)


def test_retrieval_has_the_sequences_of_captioning():
    source = SceneSource("val", size=5)
    assert of(Retrieval, source).segments == of(Captioning, source).segments


QUESTIONS = [
    {"questions": [{"question": "what color is the dog?", "answer": "Brown", "type": "color"},
                   {"question": "how many dogs?", "answer": "two", "type": "number"}]},
    {"questions": []}, {},
    {"questions": [{"question": "what color is the cat?", "answer": "two tone"}, {"question": "where?", "answer": "two"},
                   {"question": "what?", "answer": " "}]},
]


def test_answers_are_classes_by_how_often_they_occur(split):
    source = split("train", QUESTIONS)
    task = of(Vqa, source)
    assert task.learned["answers"] == ["two", "brown", "two tone"]
    assert task.segments[2] == Segment(ANSWER, 1, (3,), predicted=True)
    rows = task.rows(source)
    assert rows.pictures.tolist() == [0, 0, 3, 3]
    assert rows.tokens[ANSWER].tolist() == [[1], [0], [2], [0]]
    assert rows.about[0] == {"question": "what color is the dog?", "answer": "Brown", "type": "color"} and rows.about[2]["type"] is None
    assert task.vocabulary.decode(rows.tokens[QUESTION])[1] == "how many dogs ?"
    other = task.rows(split("test", [{"questions": [{"question": "what?", "answer": "green"}]}]))
    assert other.tokens[ANSWER].tolist() == [[-1]], "an answer that training did not have is no token"


def test_answers_are_words_up_to_an_end(split):
    source = split("train", QUESTIONS)
    task = of(VqaGenerate, source)
    rows = task.rows(source)
    assert task.segments[2].end == task.answer_vocabulary.end
    assert task.decode_answers(rows.tokens[ANSWER]) == ["brown", "two", "two tone", "two"]
    other = task.encode_answers(["green", "two"])
    assert other[0, 0] == -1 and task.decode_answers(other)[1] == "two"


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize(("size", "box"), [((80, 40), (30, 4, 50, 22)), ((40, 100), (3, 45, 33, 75)), ((64, 64), (0, 0, 20, 64))])
def test_a_box_follows_the_cut_of_the_picture(split, fit, size, box):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    source = split("train", [{"regions": [{"phrases": ["the light", " "], "types": ["thing"], "boxes": [list(box)]}]}], [Image.fromarray(pixels)])
    [region] = regions_of(source, 0, 64, fit)
    assert region.phrases == ("the light",) and region.kind == "thing"
    rows, columns = np.nonzero(source.read(0, 64, fit)[..., 0] > 127)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 64
    assert np.abs(np.array(region.box) - seen).max() <= 1 / 64


def test_a_box_is_in_the_pixels_of_the_picture_as_it_is_seen(tmp_path):
    """A camera that was turned: the file's rows are the picture's columns."""
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[10:20, 5:25] = 255
    exif = Image.Exif()
    exif[0x0112] = 8  # shown after a quarter turn against the clock
    (tmp_path / "train").mkdir()
    Image.fromarray(np.rot90(pixels, -1).copy()).save(tmp_path / "train" / "a.jpg", quality=100, exif=exif)
    record = {"file_name": "a.jpg", "regions": [{"phrases": ["it"], "boxes": [[5, 10, 25, 20]]}]}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(record))
    source = open_split(tmp_path, "train")
    [region] = regions_of(source, 0, 60, "stretch")
    rows, columns = np.nonzero(source.read(0, 60, "stretch")[..., 0] > 127)
    assert np.abs(np.array(region.box) * 60 - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).max() <= 1


def test_what_is_cut_away_has_no_box():
    # of a picture 80 wide and 40 high the columns 20 .. 60 are shown
    assert shown_box([0, 0, 30, 40], (80, 40), "crop") is None
    assert shown_box([0, 0, 40, 40], (80, 40), "crop") == (0, 0, 0.5, 1)
    assert shown_box([50, 10, 65, 30], (80, 40), "crop") == (0.75, 0.25, 1, 0.75)
    assert shown_box([0, 0, 30, 40], (80, 40), "stretch") == (0, 0, 0.375, 1)
    assert shown_box([9, 9, 9, 12], (80, 40), "stretch") is None


def test_phrases_with_one_box_are_grounded(split):
    source = split("train", [{"regions": [
        {"phrases": ["two dogs"], "boxes": [[0, 0, 4, 4], [8, 8, 12, 12]]},
        {"phrases": ["a cat", "it"], "types": ["animal"], "boxes": [[4, 0, 12, 16]]},
        {"phrases": [], "boxes": [[0, 0, 4, 4]]}, {"phrases": ["nothing"], "boxes": []},
    ]}])
    task = of(Grounding, source)
    rows = task.rows(source)
    assert [fact["phrase"] for fact in rows.about] == ["a cat", "it"] and rows.pictures.tolist() == [0, 0]
    assert task.vocabulary.decode(rows.tokens[PHRASE]) == ["a cat", "it"]
    assert rows.tokens[BOX].tolist() == [[16, 0, 47, 63]] * 2
    torch.testing.assert_close(task.boxes(rows.tokens[BOX][:1]), torch.tensor([[16, 0, 47, 63]]).double() / 63)
    turned = task.boxes(torch.tensor([[47, 63, 16, 0]]))
    assert torch.equal(turned, task.boxes(rows.tokens[BOX][:1]))


def test_boxes_of_scenes_hold_their_objects():
    source = SceneSource("val", size=30)
    task = of(Grounding, source)
    rows = task.rows(source)
    for picture, fact, box in zip(rows.pictures.tolist(), rows.about, task.boxes(rows.tokens[BOX]).tolist(), strict=True):
        scene = sample_scene(0, "val", picture)
        [owner] = [number for number, item in enumerate(scene.objects)
                   if fact["phrase"].endswith(item.shape) and f" {item.colour} " in fact["phrase"]]
        rows_, columns = np.nonzero(render(scene, 32).owners == owner)
        assert np.abs(np.array(box) * 32 - [columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1]).max() <= 16 / 63 + 1e-9


def test_masked_words_fill_the_blanks():
    source = SceneSource("val", size=20)
    task = of(MaskedWord, source)
    rows = task.rows(source)
    whole = {caption: row.tolist() for picture in range(20) for caption in source.record(picture)["captions"]
             for row in task.vocabulary.encode([caption], task.learned["length"])}
    for text, words, fact in zip(rows.tokens[TEXT].tolist(), rows.tokens[WORDS].tolist(), rows.about, strict=True):
        assert text.count(task.vocabulary.mask) == fact["masked"] and words[fact["masked"] :] == [-1] * (3 - fact["masked"])
        left = iter(words)
        assert [next(left) if token == task.vocabulary.mask else token for token in text] == whole[fact["caption"]]
    masked = {token for words in rows.tokens[WORDS].tolist() for token in words if token >= 0}
    assert not masked & {task.vocabulary.end, *task.vocabulary.ids(". ,")}
    assert [fact["masked"] for fact in rows.about] == [1, 3] * (len(rows) // 2)


def test_which_words_are_masked_does_not_depend_on_how_much_is_looked_at():
    source = SceneSource("val", size=20)
    task = of(MaskedWord, source)
    few, all_ = task.rows(source.limited(3)), task.rows(source)
    assert all(torch.equal(few.tokens[name], all_.tokens[name][: len(few)]) for name in (TEXT, WORDS))


def test_a_caption_with_fewer_words_is_masked_once_and_an_unknown_word_never(split):
    task = of(MaskedWord, split("train", [{"captions": ["a dog runs ."]}]))
    rows = task.rows(split("test", [{"captions": ["zebra runs zebra zebra .", "dog !", "zebra ."]}]))
    assert [(fact["caption"][:5], fact["masked"]) for fact in rows.about] == [("zebra", 1), ("dog !", 1)]
    assert rows.tokens[WORDS].tolist() == [[*task.vocabulary.ids("runs"), -1, -1], [*task.vocabulary.ids("dog"), -1, -1]]
    with pytest.raises(ValueError, match="no captions with a word"):
        task.rows(split("val", [{"captions": ["zebra ."]}]))


def test_all_but_the_longest_texts_fit():
    learned = learn_texts(["one two"] * 199 + ["many words " * 9], longest=32)
    assert learned["length"] == 3
    assert learn_texts(["w " * 40] * 3)["length"] == 32


@pytest.mark.parametrize(("kind", "message"), [
    (Captioning, 'has no captions; expected a metadata.jsonl with "captions"'), (MaskedWord, "has no captions"), (Retrieval, "has no captions"),
    (Vqa, 'has no questions; expected a metadata.jsonl with "questions"'), (VqaGenerate, "has no questions"),
    (Grounding, 'has no phrases with a box; expected a metadata.jsonl with "regions"'),
])
def test_data_without_what_a_task_needs_is_refused(split, kind, message):
    with pytest.raises(ValueError, match=message):
        kind.learn(split("train", [{"captions": [], "questions": [], "regions": [{"phrases": ["two"], "boxes": [[0, 0, 1, 1], [1, 1, 2, 2]]}]}]))
