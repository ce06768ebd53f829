"""The training loop's step of every small recipe, against the same model quantised in plain PyTorch; `python -m benchmarks.training` tells more."""

import pytest
import torch

from benchmarks.conftest import DEVICE
from benchmarks.recipe_step import SMALL, contenders, pictures, step_of


@pytest.mark.parametrize("recipe, contender", [(recipe, contender) for recipe in SMALL for contender in contenders(recipe, DEVICE)])
def test_recipe_step(measure, device, recipe, contender):
    images = pictures(recipe, torch.device(device))
    group = f"{recipe} training step, batch {len(images)} at {images.shape[2]}x{images.shape[3]}"
    measure(lambda name: step_of(recipe, name, images), group, contender, rounds=5)
