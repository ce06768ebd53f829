"""Named shapes of priors and how they are trained."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from training.optimization import AdamSettings
from training.spelling import did_you_mean
from vqkit.models import DiffusionPriorConfig, MaskedPriorConfig, PriorConfig


@dataclass(frozen=True, kw_only=True)
class PriorSettings(AdamSettings):
    """How a prior is trained on the codes of a frozen tokenizer; the model's own settings are in `model`."""

    tokenizer: Path = tyro.MISSING
    """The run of a tokenizer, whose model is copied into this run."""
    data: str = tyro.MISSING
    """A folder or zip with the splits train, val, test; or "scenes", the built-in pictures."""
    out: Path = tyro.MISSING
    """The run's folder. The same command on a stopped run resumes it."""
    codes_from: Path | None = None
    """Another prior's run of the same tokenizer and data, whose codes of the pictures are taken instead of encoding them anew."""
    steps: int = 2000
    """Optimiser steps. A finished run goes on where a larger number is given, unless its schedule ends with them."""
    batch_size: int = 64
    """Sequences in a pass, on each rank."""
    lr: float = 5e-4
    """Learning rate of AdamW; the largest one of a schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of weights of two or more dimensions but embeddings."""
    warmup_steps: int = 100
    """Steps over which the rate grows linearly from nothing; see --schedule for what comes then."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 clips nothing."""
    max_pictures: int | None = None
    """At most so many pictures of the train split: the first, of class folders spread evenly."""
    seed: int = 0
    """Of weights, order and dropout, and of the built-in scenes."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network; auto is bf16 where the device computes it fast. Losses are float32."""
    save_every: int = 200
    """Steps between checkpoints; the last two are kept."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "save_every", "log_every", "max_pictures"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.grad_clip < 0:
            raise ValueError(f"grad_clip: expected 0 or more, got {self.grad_clip}")


@dataclass(frozen=True, kw_only=True)
class AutoregressiveSettings(PriorSettings):
    """Training of a decoder-only transformer."""

    model: PriorConfig = PriorConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class MaskedSettings(PriorSettings):
    """Training of a transformer that fills in masked codes."""

    model: MaskedPriorConfig = MaskedPriorConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(PriorSettings):
    """Training of a transformer that undoes a discrete diffusion."""

    model: DiffusionPriorConfig = DiffusionPriorConfig()
    """Shape of the model."""


@dataclass(frozen=True)
class PriorRecipe:
    """A prior's name, what the recipe is, and its settings."""

    prior: str
    summary: str
    settings: PriorSettings


# VIM decays exponentially to 1e-5; by which step is not said: the last one is our reading.
_VIM = {"lr": 4.5e-4, "betas": (0.9, 0.96), "schedule": "exponential", "final_lr": 1e-5, "batch_size": 256}
_PUBLISHED = {"warmup_steps": 5000, "steps": 500_000, "save_every": 2000, "log_every": 100}
# Of captioning on Flickr8k in 100 s of one core: 3.53 nats a word, where 64 sequences at a constant 5e-4 reached 4.56.
_SMALL = {"lr": 2e-3, "batch_size": 32, "warmup_steps": 20, "schedule": "cosine"}
_SHAPE = {"depth": 4, "width": 192, "heads": 4, "dropout": 0.0, "condition_dropout": 0.1}
PRIOR_RECIPES = {
    "small": PriorRecipe("prior", "4 layers of 192: minutes on two processor cores", AutoregressiveSettings(model=PriorConfig(**_SHAPE), **_SMALL)),
    "masked": PriorRecipe("masked-prior", "the same size, all codes in 12 passes (MaskGIT); for pictures", MaskedSettings(
        model=MaskedPriorConfig(**_SHAPE), **_SMALL)),
    "diffusion": PriorRecipe("diffusion-prior", "the same size, codes by discrete diffusion (VQ-Diffusion); for pictures", DiffusionSettings(
        model=DiffusionPriorConfig(**_SHAPE), **_SMALL)),
    "gpt": PriorRecipe("prior", "16 layers, 16 heads, 1,024 wide, as LG-VQ's and VQCT's second stage; a GPU", AutoregressiveSettings(
        model=PriorConfig(depth=16, width=1024, heads=16), lr=4.5e-6 * 8, batch_size=8, **_PUBLISHED)),
    "vim-base": PriorRecipe("prior", "VIM base: 24 layers, 1,536 wide; GPUs and days", AutoregressiveSettings(
        model=PriorConfig(depth=24, width=1536, heads=16), **_VIM, **_PUBLISHED)),
    "vim-large": PriorRecipe("prior", "VIM large: 36 layers, 2,048 wide; GPUs and days", AutoregressiveSettings(
        model=PriorConfig(depth=36, width=2048, heads=32), **_VIM, **_PUBLISHED)),
    "maskgit": PriorRecipe("masked-prior", "MaskGIT: 24 layers, 768 wide; GPUs and days", MaskedSettings(
        model=MaskedPriorConfig(depth=24, width=768, heads=16, condition_dropout=0.1), lr=1e-4, betas=(0.9, 0.96), batch_size=256, **_PUBLISHED)),
    "vq-diffusion": PriorRecipe("diffusion-prior", "VQ-Diffusion as LG-VQ's text to image: 19 layers, 1,024 wide; GPUs and days", DiffusionSettings(
        model=DiffusionPriorConfig(depth=19, width=1024, heads=16, passes=100), lr=4.5e-4, betas=(0.9, 0.96), batch_size=64, **_PUBLISHED)),
}


def find_prior_recipe(name: str) -> PriorRecipe:
    """The recipe of this name. Raises ValueError naming the known ones."""
    if name not in PRIOR_RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(PRIOR_RECIPES)}, got {name!r}{did_you_mean(name, PRIOR_RECIPES)}")
    return PRIOR_RECIPES[name]


def to_json(task: str, recipe: str, settings: PriorSettings) -> dict:
    """What RUN/config.json holds."""
    return json.loads(json.dumps({"task": task, "recipe": recipe, **settings.pinned(dataclasses.asdict(settings))}, default=str))
