"""Class-conditional generation: the class comes first, and what is drawn is of it."""

import json

import pytest
import torch
from PIL import Image

from training.data.batches import to_float
from training.data.scenes import BACKGROUNDS
from training.data.sources import PictureSource, SceneSource, open_split
from training.linear_classifier import LinearClassifier
from training.priors.codes import PictureFormat
from training.priors.drawing import Drawing
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.tasks.class_conditional import CLASS, ClassConditional
from training.tasks.distribution import generated, real_pictures
from vqkit.models import Segment

FORMAT = PictureFormat(16, "crop", 2, 3, (8, 5), (2, 1))


@pytest.fixture
def folders(tmp_path):
    """Class folders of a train and a test split, and a picture that lies in none."""
    files = {"train": ("cats/a.png", "cats/b.png", "ants/a.png", "dogs/a.png", "stray.png"), "test": ("dogs/z.png", "ants/z.png")}
    for split, names in files.items():
        for name in names:
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(path)
    return tmp_path


def test_a_class_is_one_token_before_the_picture(folders):
    train, test = open_split(folders, "train"), open_split(folders, "test")
    task = ClassConditional(FORMAT, ClassConditional.learn(train))
    assert task.segments == (Segment("class", 1, (3,)), Segment("image", 6, (8, 5), (2, 1), predicted=True))
    rows = task.rows(train)
    # ants, cats, dogs in their order; the picture without a class is no example
    assert [train.record(index)["file_name"] for index in rows.pictures] == ["ants/a.png", "cats/a.png", "cats/b.png", "dogs/a.png"]
    assert rows.tokens[CLASS].tolist() == [[0], [1], [1], [2]]
    assert task.rows(test).about == [{"label": "ants"}, {"label": "dogs"}] and task.rows(test).tokens[CLASS].tolist() == [[0], [2]]


def test_the_class_of_a_scene_is_its_background():
    source = SceneSource("val", size=200)
    task = ClassConditional(FORMAT, ClassConditional.learn(source))
    assert task.classes == sorted(BACKGROUNDS)
    told = [about["label"] for about in task.rows(source).about]
    places = [source.record(index)["captions"][3] for index in range(200)]
    assert all(any(said in place for said in BACKGROUNDS[label][2]) for label, place in zip(told, places, strict=True))


def test_fewer_pictures_of_class_folders_are_of_all_classes(folders):
    train = open_split(folders, "train")
    assert [train.limited(3).record(index).get("label") for index in range(3)] == ["ants", "cats", "dogs"]
    assert [train.limited(9).record(index) for index in range(5)] == [train.limited(None).record(index) for index in range(5)] == train.records
    captioned = PictureSource(train.tree, train.name, [{"file_name": name} for name in "abcde"])
    assert [captioned.limited(2).record(index)["file_name"] for index in range(2)] == ["a", "b"]
    assert [len(SceneSource("test").limited(count)) for count in (5, 600, None)] == [5, 512, 512]


@pytest.mark.parametrize("records, message", [
    ([{"captions": ["a cat"]}, {}], "has no classes"),
    ([{"label": "cat"}, {"label": "cat"}], "the one class 'cat', expected at least two"),
])
def test_data_without_classes_is_refused(tmp_path, records, message):
    (tmp_path / "train").mkdir()
    lines = [json.dumps({"file_name": f"{number}.png"} | record) for number, record in enumerate(records)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        ClassConditional.learn(open_split(tmp_path, "train"))


def test_a_class_that_training_did_not_have_is_refused(folders):
    task = ClassConditional(FORMAT, {"classes": ["ants", "cats"]})
    with pytest.raises(ValueError, match=r"dogs/z.png is of the class 'dogs', expected one of the 2 classes of training: ants, cats"):
        task.rows(open_split(folders, "test"))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_other_class_is_never_the_own_one_and_each_in_its_turn(classes):
    task = ClassConditional(FORMAT, {"classes": [f"class {number}" for number in range(classes)]})
    own = torch.arange(classes).repeat_interleave(60).unsqueeze(1)
    other = task._other_classes(torch.arange(len(own)), {CLASS: own})[CLASS]
    pairs = torch.zeros(classes, classes, dtype=torch.int64).index_put((own[:, 0], other[:, 0]), torch.tensor(1), accumulate=True)
    assert (pairs.diagonal() == 0).all() and (pairs[~torch.eye(classes, dtype=torch.bool)] == 60 // (classes - 1)).all()


def test_panels_are_of_the_classes_that_are_asked_for(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("class-conditional", untrained_run, max_pictures=64))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=4)), run.task()
    shown = task.panels(judged, [], 13)
    assert [panel.text for panel in shown] == [*sorted(BACKGROUNDS), *sorted(BACKGROUNDS)][:13]
    beach, = task.panels(judged, ["beach"], 1)
    assert beach.text == "beach" and beach.pictures[0].shape == (3, 32, 32) and beach.pictures[0].dtype == torch.uint8
    with pytest.raises(ValueError, match="prompt: expected one of the classes beach, .*got 'beech'; did you mean 'beach'"):
        task.panels(judged, ["beech"], 1)


@pytest.mark.slow
def test_pictures_are_of_their_class_and_guidance_makes_them_more_so(prior_of, tokenizer_run):
    folder = prior_of("class-conditional", tokenizer_run, 200, max_pictures=512)
    metrics = evaluate_prior(PriorEvaluation(folder, pictures=128))
    # 0.5 by chance
    assert metrics["matching"] > 0.85
    run = FinishedPrior.open(folder)
    task, judged = run.task(), judge(run, PriorEvaluation(folder, pictures=256))
    labels = judged.examples.rows.tokens[CLASS][:, 0]
    classifier = LinearClassifier.fit(_colors(real_pictures(judged, task.pictures, torch.arange(256))), labels, 11)
    told = {}
    for guidance in (0.0, 1.0, 3.0):
        drawn = judge(run, PriorEvaluation(folder, pictures=256, sampling=Drawing(guidance=guidance)))
        pictures = torch.cat([found for _, found in generated(drawn, task.pictures, lambda tokens: {CLASS: tokens[CLASS]})])
        told[guidance] = (classifier.predict(_colors(pictures)) == labels).double().mean().item()
    # one in eleven by chance, which is what guidance of nothing gives
    assert told[0.0] < 0.25 and told[1.0] > 0.5 and told[3.0] > told[1.0]


def _colors(pictures):
    return torch.nn.functional.adaptive_avg_pool2d(to_float(pictures, torch.device("cpu")), (4, 1)).flatten(1)
