"""The training of priors: learns, resumes to the same bits, stands on its own, and refuses what does not fit."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import checkpoint
from training.__main__ import main
from training.data.sources import open_split
from training.log import read_log
from training.priors.codes import PictureFormat, encode_pictures, read_codes
from training.priors.gallery import gallery, write_gallery
from training.priors.recipes import PRIOR_RECIPES
from training.priors.runs import FinishedPrior
from training.priors.train import train_prior
from training.tasks import find_task, task_names
from training.tasks.task import Panel
from training.tokenizer import train

SHAPE = {"depth": 2, "width": 32, "heads": 2, "dropout": 0.1}


@pytest.fixture
def tokenizer(tiny):
    """The run of a small VQCT, whose positions hold three codes."""
    return train("vqct", tiny("vqct", "tokenizer", steps=2))


@pytest.fixture
def settings(tokenizer, pictures, tmp_path):
    def changed(recipe="small", out="prior", **changes):
        base = PRIOR_RECIPES[recipe].settings
        fixed = {"tokenizer": tokenizer, "data": str(pictures), "out": tmp_path / out, "batch_size": 4, "log_every": 2, "save_every": 2,
                 "device": "cpu", "warmup_steps": 2, "lr": 3e-3, "schedule": "constant", "precision": "fp32",
                 "model": dataclasses.replace(base.model, **SHAPE)}
        return dataclasses.replace(base, **fixed | changes)

    return changed


@pytest.mark.parametrize("recipe", ["small", "masked", "diffusion"])
def test_a_prior_learns_the_codes_of_few_pictures(settings, recipe):
    folder = train_prior("unconditional", recipe, settings(recipe, steps=60, log_every=10, save_every=30))
    log = read_log(folder / "log.jsonl")
    assert [line["step"] for line in log] == list(range(10, 61, 10))
    assert log[-1]["image_nats"] < 0.8 * log[0]["image_nats"]
    assert all(line["tokens_per_second"] > 0 for line in log)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_trains(settings, precision):
    folder = train_prior("unconditional", "small", settings(steps=2, precision=precision))
    assert all(parameter.dtype == torch.float32 for parameter in FinishedPrior.open(folder).prior().parameters())


def test_a_schedule_ends_where_it_was_to_end(settings):
    chosen = {"schedule": "cosine", "final_lr": 1e-4}
    train_prior("unconditional", "small", settings(steps=2, **chosen))
    with pytest.raises(ValueError, match="schedule_steps: was 2, now 4"):
        train_prior("unconditional", "small", settings(steps=4, **chosen))
    train_prior("unconditional", "small", settings(steps=4, schedule_steps=2, out="longer", warmup_steps=1, **chosen))


def test_stopped_and_resumed_equals_undisturbed(settings):
    undisturbed = train_prior("text-to-image", "small", settings(out="undisturbed", steps=7))
    train_prior("text-to-image", "small", settings(out="stopped", steps=4))
    resumed = train_prior("text-to-image", "small", settings(out="stopped", steps=7))
    one, other = (load_file(checkpoint.latest(folder) / "state.safetensors") for folder in (undisturbed, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "model" / "model.safetensors").read_bytes() == (resumed / "model" / "model.safetensors").read_bytes()


def test_a_finished_run_needs_its_tokenizer_run_no_more(settings, tokenizer, tmp_path, capsys):
    folder = train_prior("text-to-image", "small", settings(steps=2))
    shutil.rmtree(tokenizer)
    main(["evaluate", str(folder)])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "text-to-image" and metrics["steps"] == 2 and metrics["examples"] == 20
    assert metrics["image_nats_per_token"] > 0 and 0 <= metrics["matching"] <= 1
    assert "image_nats_per_token" in capsys.readouterr().out
    main(["generate", str(folder), "--out", str(tmp_path / "some.png"), "--prompt", "a soft picture", "a picture"])
    assert Image.open(tmp_path / "some.png").size[0] > 300


def test_the_codes_of_a_split_are_those_of_the_tokenizer(settings):
    folder = train_prior("unconditional", "small", settings(steps=2))
    run, source = FinishedPrior.open(folder), open_split(FinishedPrior.open(folder).config["data"], "train")
    kept = read_codes(folder / "codes" / "train.safetensors")
    fresh = encode_pictures(run.tokenizer(), source, run.task().pictures, batch_size=7)
    assert torch.equal(kept.codes, fresh.codes) and kept.readable.all()
    shapes = run.task().pictures
    assert torch.equal(shapes.to_map(kept.codes.long()).flatten(1, 2), kept.codes.long())


def test_an_unreadable_picture_is_left_out(settings, pictures, capsys):
    (pictures / "train" / "03.png").write_bytes(b"not a picture")
    folder = train_prior("text-to-image", "small", settings(steps=2))
    assert read_codes(folder / "codes" / "train.safetensors").readable.sum() == 19
    printed = capsys.readouterr().out
    assert "19 examples" in printed and "1 pictures" in printed


@pytest.mark.parametrize(("changes", "message"), [
    ({"lr": 1e-3}, "lr: was 0.003, now 0.001"), ({"seed": 1}, "seed: was 0, now 1"), ({"steps": 1}, "steps: .* has 2 steps already, now 1"),
])
def test_another_run_is_not_overwritten(settings, changes, message):
    folder = train_prior("unconditional", "small", settings(steps=2))
    before = (folder / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=message):
        train_prior("unconditional", "small", settings(**{"steps": 4} | changes))
    with pytest.raises(ValueError, match="task: was 'unconditional', now 'text-to-image'"):
        train_prior("text-to-image", "small", settings(steps=2))
    assert (folder / "model" / "model.safetensors").read_bytes() == before


def test_a_tokenizer_without_codes_is_refused(settings, tiny):
    folder = train("autoencoder", tiny("autoencoder", "plain", steps=2))
    with pytest.raises(ValueError, match="plain autoencoder"):
        train_prior("unconditional", "small", settings(tokenizer=folder))


def test_what_is_no_prior_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="is not the run of a prior"):
        FinishedPrior.open(tokenizer)
    with pytest.raises(SystemExit):
        main(["generate", str(tokenizer), "--out", str(tmp_path / "x.png")])


@pytest.mark.parametrize(("arguments", "message"), [
    (["prior", "captionin", "--tokenizer", "x", "--data", "scenes", "--out", "y"], "did you mean 'captioning'"),
    (["prior", "captioning", "--recipe", "smal", "--tokenizer", "x", "--data", "scenes", "--out", "y"], "did you mean 'small'"),
    (["prior", "captioning", "--recipe"], "recipe: expected one of"),
    (["prior", "captioning", "--tokenizer", "nowhere", "--data", "scenes", "--out", "y"], "nowhere is not a run"),
    (["generate", "nowhere", "--out", "y.png"], "nowhere is not the run of a prior"),
])
def test_mistakes_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_tasks_and_recipes_are_listed(capsys):
    main(["tasks"])
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed and find_task(name).summary in printed for name in task_names())
    assert all(name in printed for name in PRIOR_RECIPES)


def test_a_gallery_shows_pictures_boxes_and_texts(tmp_path):
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 255
    sheet = gallery([Panel([red, red], "two reds and a long text that has to be wrapped somewhere in the middle", [(1, [0.25, 0.25, 0.75, 0.75], "box")]),
                     Panel([red])], columns=2, side=80)
    assert sheet.getpixel((20, 20)) == (255, 0, 0)
    # the box is on the second picture alone
    assert sheet.getpixel((8 + 20, 8 + 40)) == (255, 0, 0) and sheet.getpixel((8 + 88 + 20, 8 + 40)) != (255, 0, 0)
    with pytest.raises(ValueError, match="out: expected the name of a picture"):
        write_gallery([Panel([red])], tmp_path / "pictures.txt")
    with pytest.raises(ValueError, match="panels: expected at least one"):
        gallery([])


def test_codes_that_are_no_map_are_refused():
    class Odd(torch.nn.Module):
        name, codebook_sizes, selections = "odd", (4,), (1,)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, images):
            return torch.zeros(len(images), 7, dtype=torch.int64)

    with pytest.raises(ValueError, match=r"a prior needs a map of codes .* odd gives \(1, 7\)"):
        PictureFormat.of(Odd(), 8, "crop")


def test_what_no_prior_wrote_is_not_removed(settings, tokenizer, tmp_path):
    # As "--tokenizer runs/tokenizer --out runs", where the copy of the model would have the place of the run.
    before = {path: path.read_bytes() for path in tokenizer.rglob("*") if path.is_file()}
    assert tokenizer == tmp_path / "tokenizer"
    with pytest.raises(ValueError, match="out: .*tokenizer holds .* which a prior's run does not; choose another --out"):
        train_prior("unconditional", "small", settings(out=".", steps=1))
    assert before == {path: path.read_bytes() for path in tokenizer.rglob("*") if path.is_file()}
    (tmp_path / "other" / "codes").mkdir(parents=True)
    (tmp_path / "other" / "codes" / "mine.py").write_text("")
    with pytest.raises(ValueError, match="codes holds mine.py"):
        train_prior("unconditional", "small", settings(out="other", steps=1))
    # what a stopped beginning leaves is removed
    (tmp_path / "other" / "codes" / "mine.py").rename(tmp_path / "other" / "codes" / "train.safetensors")
    train_prior("unconditional", "small", settings(out="other", steps=1))


def test_a_checkpoint_of_another_architecture_is_named(settings):
    folder = train_prior("unconditional", "small", settings(steps=2))
    config = json.loads((folder / "config.json").read_text())
    config["model"]["width"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    wider = settings(steps=4)
    with pytest.raises(ValueError, match="was made by another architecture of the model: size mismatch"):
        train_prior("unconditional", "small", dataclasses.replace(wider, model=dataclasses.replace(wider.model, width=64)))
