"""One small tokenizer of built-in scenes for all tasks, trained once a session, and priors on its codes."""

import dataclasses
from pathlib import Path

import pytest
import torch

from training.priors.recipes import PRIOR_RECIPES
from training.priors.train import train_prior
from training.recipes import RECIPES
from training.tokenizer import train


def _train_tokenizer(out: Path, steps: int) -> Path:
    """A VQ-GAN of 0.7 M parameters: scenes at 32x32 as 8x8 codes, 128 of them; 100 steps take 12 seconds of one core."""
    base = RECIPES["vqgan"].settings
    model = dataclasses.replace(base.model, channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention=False, latent_dim=32, code_dim=16,
                                codebook="ema", kmeans_init=True, threshold_ema_dead_code=0.5, codebook_size=(128,), selections=(1,), decay=0.95)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train("vqgan", dataclasses.replace(base, model=model, data="scenes", out=out, resolution=32, batch_size=16, steps=steps, lr=2e-3,
                                                  flip=False, ema_decay=0.9, disc_weight=0.0, workers=0, save_every=steps, device="cpu",
                                                  precision="fp32"))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory) -> Path:
    """The run of a tokenizer whose codes tell backgrounds and where shapes are, of their colours little; 36 seconds, for slow tests."""
    return _train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "run", steps=300)


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory) -> Path:
    """The run of the same tokenizer after one step, for what needs codes and not that they mean anything."""
    return _train_tokenizer(tmp_path_factory.mktemp("untrained") / "run", steps=1)


@pytest.fixture
def prior_of(tmp_path):
    """prior_of(task, tokenizer, steps=2, recipe="small", depth=2, width=64, **changes): a prior's run; `changes` are of its settings."""

    def make(task: str, tokenizer: Path, steps: int = 2, *, recipe: str = "small", depth: int = 2, width: int = 64, **changes) -> Path:
        base = PRIOR_RECIPES[recipe].settings
        model = dataclasses.replace(base.model, depth=depth, width=width, heads=4, dropout=0.0)
        fixed = {"tokenizer": tokenizer, "data": "scenes", "out": tmp_path / task, "batch_size": 32, "steps": steps, "lr": 2e-3, "warmup_steps": 20,
                 "max_pictures": 16, "save_every": steps, "device": "cpu", "precision": "fp32", "model": model}
        return train_prior(task, recipe, dataclasses.replace(base, **fixed | changes))

    return make
