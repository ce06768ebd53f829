"""Tasks with words from the command line, and what a small prior learns of scenes that chance and the text alone do not reach."""

import json

import pytest
from PIL import Image

from training.__main__ import main
from training.data.sources import SceneSource
from training.priors.evaluate import PriorEvaluation, evaluate_prior
from training.tasks import find_task

NAMES = ("captioning", "vqa", "vqa-generate", "grounding", "masked-word", "retrieval")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder with 12 scenes a split, and all that is said of them."""
    folder = tmp_path_factory.mktemp("few")
    for split in ("train", "test"):
        (folder / split).mkdir()
        source, lines = SceneSource(split, size=12), []
        for number in range(12):
            Image.fromarray(source.read(number, 32, "crop")).save(folder / split / f"{number}.png")
            lines.append(json.dumps(source.record(number) | {"file_name": f"{number}.png", "regions": source.regions(number, 32)}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_trains_evaluates_and_shows(name, untrained_run, prior_of, few, tmp_path, capsys):
    folder = prior_of(name, untrained_run, data=few)
    main(["evaluate", str(folder), "--pictures", "4", "--device", "cpu"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == name and metrics["steps"] == 2 and all(value == value for value in metrics.values())
    main(["generate", str(folder), "--count", "3", "--out", str(tmp_path / "shown.png"), "--device", "cpu"])
    assert Image.open(tmp_path / "shown.png").size[1] > 160
    assert f"3 examples of {name}" in capsys.readouterr().out


def test_the_likeliest_tokens_are_drawn_unless_something_else_is_asked(untrained_run, prior_of, few):
    folder = prior_of("vqa", untrained_run, data=few)
    one, same = (evaluate_prior(PriorEvaluation(folder, pictures=12, seed=seed)) for seed in (0, 1))
    assert one == same
    main(["evaluate", str(folder), "--pictures", "12", "--sampling.temperature", "100"])
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] != one["accuracy"]


@pytest.mark.parametrize("recipe", ["masked", "diffusion"])
def test_other_priors_answer_too(recipe, untrained_run, prior_of, few):
    found = evaluate_prior(PriorEvaluation(prior_of("vqa", untrained_run, recipe=recipe, data=few), pictures=4))
    assert 0 <= found["accuracy"] <= 1 and found["answer_nats_per_token"] > 0


def test_a_prior_of_captioning_retrieves(untrained_run, prior_of, few):
    folder = prior_of("captioning", untrained_run, data=few)
    found = evaluate_prior(PriorEvaluation(folder, pictures=4, task="retrieval"))
    assert json.loads((folder / "metrics.retrieval.json").read_text()) == found and found["pool"] == 4
    with pytest.raises(ValueError, match=r"task: expected one with the sequences of captioning \(image, text\), got vqa"):
        evaluate_prior(PriorEvaluation(folder, pictures=4, task="vqa"))


def test_prompts_are_asked(untrained_run, prior_of, few, tmp_path):
    for name, prompt in (("vqa", "how many shapes are there?"), ("grounding", "the red circle"), ("masked-word", "a ___ circle on a beach."),
                         ("retrieval", "a red circle")):
        folder = prior_of(name, untrained_run, data=few)
        main(["generate", str(folder), "--count", "3", "--prompt", prompt, prompt, "--out", str(tmp_path / f"{name}.png"), "--device", "cpu"])
        assert Image.open(tmp_path / f"{name}.png").width > 160


def test_what_each_task_gives():
    assert [find_task(name).gives for name in NAMES] == ["text", "text", "text", "box", "word", "text"]


@pytest.fixture(scope="module")
def one_shape(tmp_path_factory):
    """A folder with scenes of one shape, 1,200 to train on and 80 to test: where it is, and before which background."""
    folder = tmp_path_factory.mktemp("one_shape")
    for split, count in (("train", 1200), ("test", 80)):
        (folder / split).mkdir()
        source, lines = SceneSource(split), []
        for number in range(len(source)):
            record = source.record(number)
            if record["questions"][0]["answer"] != "one" or len(lines) == count:
                continue
            Image.fromarray(source.read(number, 32, "crop")).save(folder / split / f"{number}.png")
            asked = [entry for entry in record["questions"] if entry["type"] == "location"]
            asked.append({"question": "what is behind it?", "answer": record["label"], "type": "background"})
            captions = [record["captions"][0], f"a shape before the {record['label']}."]
            lines.append(json.dumps({"file_name": f"{number}.png", "captions": captions, "questions": asked, "regions": source.regions(number, 32)}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def _learned(prior_of, name, tokenizer, data, steps=250):
    return prior_of(name, tokenizer, steps, batch_size=64, max_pictures=1200, data=data)


@pytest.mark.slow
def test_answers_are_read_off_the_picture(prior_of, tokenizer_run, one_shape):
    found = evaluate_prior(PriorEvaluation(_learned(prior_of, "vqa", tokenizer_run, one_shape)))
    # 1 of 11 backgrounds by chance
    assert found["accuracy_background"] > 0.75 and found["accuracy"] > found["accuracy_foreign"] + 0.3


@pytest.mark.slow
def test_boxes_are_read_off_the_picture(prior_of, tokenizer_run, one_shape):
    found = evaluate_prior(PriorEvaluation(_learned(prior_of, "grounding", tokenizer_run, one_shape, steps=300)))
    assert found["accuracy@0.5"] > 2 * found["accuracy@0.5_foreign"] and found["mean_iou"] > 0.2


@pytest.mark.slow
def test_masked_words_are_read_off_the_picture(prior_of, tokenizer_run, one_shape):
    found = evaluate_prior(PriorEvaluation(_learned(prior_of, "masked-word", tokenizer_run, one_shape)))
    assert all(found[f"recall@1_of_{count}"] > max(0.5, found[f"recall@1_of_{count}_foreign"] + 0.03) for count in (1, 3))


@pytest.mark.slow
def test_captions_are_of_their_picture_and_find_it(prior_of, tokenizer_run, one_shape):
    folder = _learned(prior_of, "captioning", tokenizer_run, one_shape)
    said = evaluate_prior(PriorEvaluation(folder))
    # 0.5 by chance
    assert said["matching"] > 0.75 and said["bleu4"] > said["bleu4_foreign"] + 0.15
    found = evaluate_prior(PriorEvaluation(folder, task="retrieval"))
    # 10 of 80 by chance
    assert found["pool"] == 80 and min(found["text_recall@10"], found["picture_recall@10"]) > 0.6
