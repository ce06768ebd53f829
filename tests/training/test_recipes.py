"""Small recipes train, are evaluated and resume; paper-size ones can be built; older runs resume although settings have been added."""

import dataclasses
import json

import pytest
import torch

import vqkit.models
from benchmarks.training_step import random_vocabulary
from training.evaluate import Evaluation, evaluate
from training.recipes import RECIPES, find_recipe, to_json, with_defaults
from training.tokenizer import create_discriminator, train

SMALL = [name for name, recipe in RECIPES.items() if recipe.settings.resolution <= 64]
# Downsampling, codes at a position, parameters in millions.
PAPER_SIZE = {
    "vqgan-f16": (16, 1, 72.1), "cvq-f16": (16, 1, 72.1), "vqvae-f16": (16, 1, 72.1), "vqct-f16": (16, 3, 72.2),
    "rqvae-f32": (32, 4, 100.2), "raq-f4": (4, 1, 0.8),
    "vit-vqgan-small": (8, 1, 53.7), "vit-vqgan-base": (8, 1, 175.7), "vit-vqgan-large": (8, 1, 1271.1),
}


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


@torch.no_grad()
@pytest.mark.parametrize("name", PAPER_SIZE)
def test_a_paper_size_recipe_is_built_and_takes_pictures(name):
    settings = RECIPES[name].settings
    config = dataclasses.asdict(settings.model)
    # Codes that a network makes are made of numbers; for the others shapes will do.
    device, resolution = ("cpu", 32) if name in ("vqct-f16", "raq-f4") else ("meta", settings.resolution)
    if hasattr(settings, "words"):
        config["vocabulary"] = random_vocabulary((settings.adjectives, settings.nouns), 40_000, 512)
    with torch.device(device):
        model, discriminator = vqkit.models.create(RECIPES[name].model, **config).eval(), create_discriminator(settings)
        images = torch.zeros(2, 3, resolution, resolution)
    output = model(images)
    downsampling, codes, millions = PAPER_SIZE[name]
    assert settings.resolution % downsampling == 0 and model.downsampling == downsampling
    assert output.reconstruction.shape == images.shape and output.indices.numel() == 2 * (resolution // downsampling) ** 2 * codes
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert not settings.disc_weight or settings.resolution >= discriminator.minimum_size


def test_every_paper_size_recipe_is_tested():
    plain = {name: recipe.settings for name, recipe in RECIPES.items() if not recipe.settings.guidance}
    assert {name for name, settings in plain.items() if settings.resolution > 64} == PAPER_SIZE.keys() - {"raq-f4"}


def test_guidance_changes_no_more_of_a_recipe_than_it_says():
    guided = {name: (name.removesuffix("+lg"), "lgvq") for name in RECIPES if name.endswith("+lg")}
    guided |= {"vqct-vlt": ("vqct", "translation"), "vqct-vlt-f16": ("vqct-f16", "translation")}
    assert {name for name, recipe in RECIPES.items() if recipe.settings.guidance} == guided.keys()
    assert {f"{name}-f16+lg" for name in ("vqvae", "vqgan", "cvq", "vqct")} < guided.keys()
    for name, (plain, guidance) in guided.items():
        assert RECIPES[name].model == RECIPES[plain].model
        assert RECIPES[name].settings == dataclasses.replace(RECIPES[plain].settings, guidance=guidance, flip=False)


def test_one_raq_is_trained_for_all_published_rates():
    assert RECIPES["raq-f4"].settings.model.rates == (16, 2048)


def test_a_misspelt_recipe_is_told_its_neighbours():
    with pytest.raises(ValueError, match=r"recipe: expected one of .*, got 'raqq'; did you mean 'raq'\? or 'raq-vqgan'\? or 'raq-f4'\?$"):
        find_recipe("raqq")
    with pytest.raises(ValueError, match="got 'xyz'$"):
        find_recipe("xyz")
