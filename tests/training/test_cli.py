"""The command line: what it lists, what it refuses, and the demonstration."""

import json

import pytest

from training.__main__ import main
from training.demo import Demo, demo
from training.recipes import RECIPES


def test_recipes_are_listed(capsys):
    main(["recipes"])
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed and recipe.summary in printed for name, recipe in RECIPES.items())


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_commands(capsys, arguments):
    main(arguments)
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("recipes", "tasks", "vocabulary", "tokenizer", "prior", "evaluate", "generate", "report", "study", "demo"))


def test_help_of_a_recipe_lists_its_settings(capsys):
    with pytest.raises(SystemExit) as left:
        main(["tokenizer", "vqct", "--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    assert all(option in printed for option in ("--steps", "--resolution", "--batch-size", "--lr", "--seed", "--accumulation", "--workers",
                                                "--precision", "--disc-start", "--words", "--model.channels"))


@pytest.mark.parametrize("arguments, message", [
    (["recipe"], "command: expected one of recipes, tasks, vocabulary, tokenizer, prior, evaluate, generate"),
    (["tokenizer", "vqgann", "--data", "scenes", "--out", "x"], "got 'vqgann'; did you mean 'vqgan'?"),
    (["tokenizer", "vqgan", "--data", "nowhere", "--out", "x"], "there is no nowhere"),
    (["evaluate", "nowhere", "--data", "scenes"], "nowhere is not a run"),
    (["report", "nowhere"], "nowhere is not a run"),
])
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr().err
    assert left.value.code == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments, message", [
    (["tokenizer", "vqgan", "--data", "scenes", "--out", "x", "--lr", "0"], "lr: expected more than 0, got 0.0"),
    (["tokenizer", "vqgan", "--data", "scenes", "--out", "x", "--model.channels", "0"], "channels: got 0"),
    (["tokenizer", "vqgan", "--data", "scenes", "--out", "x", "--step", "3"], "--steps"),
    (["demo", "--steps", "0"], "steps: expected at least 1, got 0"),
])
def test_a_wrong_value_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_option_is_asked_for(capsys):
    with pytest.raises(SystemExit) as left:
        main(["tokenizer", "vqgan", "--data", "scenes"])
    assert left.value.code == 2 and "--out" in capsys.readouterr().err


def test_settings_come_from_the_command_line(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    main(["tokenizer", "vqgan", "--data", str(pictures), "--out", str(run), "--resolution", "16", "--steps", "2", "--batch-size", "2", "--device", "cpu",
          "--model.channels", "8", "--model.codebook-size", "8", "16", "--flip", "False", "--workers", "0", "--ema-decay", "0.5"])
    config = json.loads((run / "config.json").read_text())
    assert (config["steps"], config["flip"], config["ema_decay"], config["model"]["codebook_size"]) == (2, False, 0.5, [8, 16])
    main(["evaluate", str(run), "--data", str(pictures), "--split", "val", "--workers", "0", "--device", "cpu"])
    assert json.loads((run / "metrics.json").read_text())["split"] == "val"
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").stat().st_size > 10_000
    main(["evaluate", "mean-color", "--data", str(pictures), "--resolution", "16", "--workers", "0"])
    assert "mean-color" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demonstration_trains_both_and_shows_them(tmp_path, capsys):
    wanted = Demo(out=tmp_path / "demo", steps=3, resolution=16)
    page = demo(wanted)
    printed = capsys.readouterr().out
    assert all(name in page.read_text() for name in ("vqgan", "vqct", "mean-color", "Words of vqct"))
    rows = {name: json.loads((tmp_path / "demo" / name / "metrics.json").read_text()) for name in ("vqgan", "vqct", "mean-color")}
    assert all(row["images"] == 512 for row in rows.values())
    assert rows["vqgan"]["codes_per_image"] == rows["vqct"]["codes_per_image"] and rows["vqgan"]["codebook_sizes"] == rows["vqct"]["codebook_sizes"]
    assert "Scenes that neither model has seen" in printed
    demo(wanted)
    assert "3 steps are done already" in capsys.readouterr().out


def test_the_demonstration_takes_the_time_it_is_given(tmp_path, monkeypatch):
    import training.demo as module

    monkeypatch.setattr(module, "_seconds_a_step", lambda resolution: 0.5)
    assert module._agreed_steps(Demo(out=tmp_path, minutes=7)) == 360
    monkeypatch.setattr(module, "_seconds_a_step", lambda resolution: 50.0)
    assert module._agreed_steps(Demo(out=tmp_path, minutes=7)) == 360
    assert module._agreed_steps(Demo(out=tmp_path / "slow", minutes=7)) == 60
