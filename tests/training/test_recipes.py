"""Every small recipe trains, is evaluated and resumes; older runs resume although settings have been added."""

import dataclasses
import json

import pytest

from training.evaluate import Evaluation, evaluate
from training.recipes import RECIPES, to_json, with_defaults
from training.tokenizer import train

SMALL = [name for name, recipe in RECIPES.items() if recipe.settings.resolution <= 64]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_recipe_trains_and_is_evaluated(name, tmp_path):
    changes = {"data": "scenes", "out": tmp_path / "run", "resolution": 32, "batch_size": 4, "save_every": 2, "log_every": 1, "workers": 0, "device": "cpu"}
    changes |= {"disc_start": 1} if RECIPES[name].settings.disc_weight else {}
    for steps in (2, 3):
        train(name, dataclasses.replace(RECIPES[name].settings, steps=steps, **changes))
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert ("discriminator" in lines[-1]) == bool(RECIPES[name].settings.disc_weight)
    metrics = evaluate(Evaluation(run=tmp_path / "run", data="scenes", device="cpu", workers=0))
    assert metrics["steps"] == 3 and metrics["psnr"] > 3


def test_a_run_that_began_before_a_setting_was_there_resumes(tiny):
    settings = tiny("vqgan", steps=2, save_every=2)
    train("vqgan", settings)
    path = settings.out / "config.json"
    config = json.loads(path.read_text())
    for name in ("discriminator", "disc_adaptive", "r1_weight", "logit_laplace_weight"):
        del config[name]
    path.write_text(json.dumps(config))
    train("vqgan", dataclasses.replace(settings, steps=3))
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="disc_adaptive: was True, now False"):
        train("vqgan", dataclasses.replace(settings, steps=4, disc_adaptive=False))
    assert with_defaults(config, "vqgan", settings) == to_json("vqgan", settings)
