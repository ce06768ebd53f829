"""Named recipes: every setting of a tokenizer's training, typed, with a default that was thought about."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from training.spelling import did_you_mean
from training.tokenizer_settings import (
    ADQSettings,
    MaskSettings,
    RAQSettings,
    RAQVQGANSettings,
    RQVAESettings,
    TokenizerSettings,
    V2LSettings,
    ViTVQGANSettings,
    VQCTSettings,
    VQGANSettings,
    VQVAESettings,
)
from vqkit.models import (
    CHANNEL_MULTIPLIERS,
    ADQConfig,
    RAQConfig,
    RAQVQGANConfig,
    RQVAEConfig,
    SGCVQGANConfig,
    V2LConfig,
    ViTVQGANConfig,
    VQCTConfig,
    VQGANConfig,
    VQVAEConfig,
)

# What may differ between a run and its resumption: none of it changes what the run computes.
FREE_ON_RESUME = ("out", "codes_from", "steps", "workers", "memory_budget", "save_every", "log_every")


@dataclass(frozen=True)
class Recipe:
    """A model's name, what the recipe is, and its settings."""

    model: str
    summary: str
    settings: TokenizerSettings


# Sized for two processor cores at 64x64: f8, and most of the width where the maps are small.
_SMALL = {"channels": 16, "channel_multipliers": (1, 2, 4, 8), "num_res_blocks": 1, "attention": True, "latent_dim": 128, "code_dim": 64}
# Two learned codebooks in the place of VQCT's adjectives and nouns: all else is the same, so the two can be compared.
_HALVES = {"codebook_size": (1024, 1024), "selections": (2, 1)}
_PAPER = {"channels": 128, "channel_multipliers": CHANNEL_MULTIPLIERS[16], "num_res_blocks": 2, "attention": True, "latent_dim": 256}
# The published rate is 4.5e-6 for every picture of the step's batch: 8 on one device here.
_PAPER_TRAINING = {"resolution": 256, "batch_size": 8, "lr": 8 * 4.5e-6, "steps": 500_000, "ema_decay": 0.0, "disc_channels": 64,
                   "disc_layers": 3, "disc_normalization": "batch", "disc_start": 10_000, "structural_weight": 1.0,
                   "save_every": 2000, "log_every": 50, "fit": "crop"}

_VIT_TRAINING = {"resolution": 256, "batch_size": 256, "lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-4, "warmup_steps": 50_000,
                 "schedule": "cosine", "final_lr": 5e-5, "steps": 500_000, "ema_decay": 0.0, "pixel_loss": "l2", "disc_weight": 0.1,
                 "disc_adaptive": False, "discriminator": "style", "disc_channels": 64, "r1_weight": 10.0, "disc_start": 0,
                 "save_every": 2000, "log_every": 50}

# Published: AdamW at 5e-4; torch's own betas and decay are our reading.
_RAQ_TRAINING = {"lr": 5e-4, "betas": (0.9, 0.999), "weight_decay": 0.01}

RECIPES = {
    "vqvae": Recipe("vqvae", "VQ-VAE, f4, 512 codes by moving average, mean squared error", VQVAESettings(
        model=VQVAEConfig(channels=64, codebook="ema"), pixel_loss="l2", disc_weight=0.0)),
    "vqgan": Recipe("vqgan", "VQ-GAN, f8, small: two learned codebooks of 1,024 codes, nothing else than VQCT", VQGANSettings(
        model=VQGANConfig(**_SMALL, **_HALVES))),
    "vqct": Recipe("vqct", "VQCT, f8, small: 1,024 adjectives and 1,024 nouns transferred from a language model", VQCTSettings(
        model=VQCTConfig(**_SMALL))),
    "cvq": Recipe("vqgan", "CVQ: the same small VQ-GAN, whose unused codes move to anchors among the latents", VQGANSettings(
        model=VQGANConfig(**_SMALL, **_HALVES, codebook="anchored"))),
    "simvq": Recipe("vqgan", "SimVQ: the same small VQ-GAN, whose codes are frozen noise through one linear map", VQGANSettings(
        model=VQGANConfig(**_SMALL, **_HALVES, codebook="linear"))),
    "v2l": Recipe("v2l", "V2L: words, and adjective-noun phrases for the whole picture, through one linear map", V2LSettings(
        model=V2LConfig(**{**_SMALL, "selections": (1, 4)}))),
    "raq": Recipe("raq", "RAQ: a VQ-VAE of any rate from 16 to 256 codes, whose codebooks a recurrent network makes", RAQSettings(
        model=RAQConfig(channels=64, codebook_size=256, rates=(16, 256)), pixel_loss="l2", disc_weight=0.0, **_RAQ_TRAINING)),
    "raq-vqgan": Recipe("raq-vqgan", "RAQ on the small VQ-GAN: one codebook of any rate from 16 to 256 codes", RAQVQGANSettings(
        model=RAQVQGANConfig(**_SMALL, codebook_size=256, rates=(16, 256)), **_RAQ_TRAINING)),
    "rqvae": Recipe("rqvae", "RQ-VAE: the small VQ-GAN with sums of 4 codes a position, of one codebook of 1,024", RQVAESettings(
        model=RQVAEConfig(**_SMALL, codebook_size=1024))),
    "sgc-vqgan": Recipe("sgc-vqgan", "SGC-VQGAN: the small VQ-GAN whose codes gather latents of one class, for data with masks", MaskSettings(
        model=SGCVQGANConfig(**_SMALL, codebook_size=1024, threshold_ema_dead_code=0.1))),
    "adq": Recipe("adq", "ADQ: a VQ-GAN that chooses for each picture between few long and many short codes", ADQSettings(
        model=ADQConfig(**_SMALL, capacity=32768, threshold_ema_dead_code=0.1))),
    "vit-vqgan": Recipe("vit-vqgan", "ViT-VQGAN, f8, small: a transformer of 4 layers, 1,024 codes of 32 by cosine", ViTVQGANSettings(
        model=ViTVQGANConfig(depth=4, width=192, heads=4, hidden=768, grid=8, codebook_size=1024), pixel_loss="l2", disc_weight=0.1,
        disc_adaptive=False, discriminator="style", disc_channels=2, r1_weight=10.0)),
    "autoencoder": Recipe("vqgan", "the same trunk without quantisation: the ceiling of what a codebook can reach", VQGANSettings(
        model=VQGANConfig(**_SMALL, **_HALVES, quantize=False))),
    "vqgan-f16": Recipe("vqgan", "VQ-GAN as published: f16 at 256x256, 1,024 codes of 256; a GPU and days", VQGANSettings(
        model=VQGANConfig(**_PAPER, codebook_size=1024), **_PAPER_TRAINING)),
    "vqvae-f16": Recipe("vqgan", "LG-VQ's VQ-VAE, our reading: the f16 VQ-GAN by mean squared error alone; a GPU and days", VQGANSettings(
        model=VQGANConfig(**_PAPER, codebook_size=1024),
        **{**_PAPER_TRAINING, "pixel_loss": "l2", "structural_weight": 0.0, "disc_weight": 0.0})),
    "vqct-f16": Recipe("vqct", "VQCT as published: f16 at 256x256, 1,949 adjectives and 4,258 nouns; a GPU and days", VQCTSettings(
        model=VQCTConfig(**_PAPER), adjectives=1949, nouns=4258, **_PAPER_TRAINING)),
    "cvq-f16": Recipe("vqgan", "CVQ on the published f16 VQ-GAN; a GPU and days", VQGANSettings(
        model=VQGANConfig(**_PAPER, codebook_size=1024, codebook="anchored"), **_PAPER_TRAINING)),
    # What was published of RAQ is the model and its optimiser: pictures, batch and steps are this package's own.
    "raq-f4": Recipe("raq", "RAQ's published VQ-VAE, f4, 128 channels, 16 to 2,048 codes of 64; pictures, batch and steps are ours", RAQSettings(
        model=RAQConfig(), pixel_loss="l2", disc_weight=0.0, **_RAQ_TRAINING)),
    "rqvae-f32": Recipe("rqvae", "RQ-VAE's published 8x8x4 codes of 256x256 pictures, f32, one codebook of 16,384; a GPU and days", RQVAESettings(
        model=RQVAEConfig(), **_PAPER_TRAINING)),
    "vit-vqgan-small": Recipe("vit-vqgan", "ViT-VQGAN small as published: 8 layers, f8 at 256x256, 8,192 codes of 32; GPUs and days", ViTVQGANSettings(
        model=ViTVQGANConfig(), **_VIT_TRAINING)),
    "vit-vqgan-base": Recipe("vit-vqgan", "ViT-VQGAN base as published: 12 layers", ViTVQGANSettings(
        model=ViTVQGANConfig(size="base"), **_VIT_TRAINING)),
    "vit-vqgan-large": Recipe("vit-vqgan", "ViT-VQGAN large as published: 32 layers", ViTVQGANSettings(
        model=ViTVQGANConfig(size="large"), **_VIT_TRAINING)),
}


def _guided(recipe: Recipe, summary: str, guidance: str = "lgvq") -> Recipe:
    """The recipe with guidance by captions, and without mirrored pictures, of which captions say the wrong side."""
    return dataclasses.replace(recipe, summary=summary, settings=dataclasses.replace(recipe.settings, guidance=guidance, flip=False))


RECIPES |= {
    "vqvae+lg": _guided(RECIPES["vqvae"], "the same VQ-VAE with codes guided by captions (LG-VQ)"),
    "vqgan+lg": _guided(RECIPES["vqgan"], "the same small VQ-GAN with codes guided by captions (LG-VQ)"),
    "cvq+lg": _guided(RECIPES["cvq"], "the same small CVQ with codes guided by captions (LG-VQ)"),
    "vqct+lg": _guided(RECIPES["vqct"], "the same small VQCT with codes guided by captions (LG-VQ)"),
    "vqct-vlt": _guided(RECIPES["vqct"], "VQCT-VLT: the same small VQCT with a decoder that reads captions off its codes", "translation"),
    "vqct-vlt-f16": _guided(RECIPES["vqct-f16"], "VQCT-VLT on VQCT as published, with our decoder of captions; a GPU and days", "translation"),
} | {f"{name}-f16+lg": _guided(RECIPES[f"{name}-f16"], f"LG-VQ as published on {name}-f16; the paper's CLIP by --lg.text-encoder; a GPU and days")
     for name in ("vqvae", "vqgan", "cvq", "vqct")}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ValueError naming the known ones."""
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]


# The settings of each guidance.
_SECTIONS = {"lgvq": "lg", "translation": "vlt"}


def to_json(recipe: str, settings: TokenizerSettings) -> dict:
    """What RUN/config.json holds."""
    fields = dataclasses.asdict(settings)
    # What is not used is not noted: runs without it have one configuration, also those that began before it was known.
    if settings.guidance is None:
        del fields["guidance"]
    for name in (section for guidance, section in _SECTIONS.items() if guidance != settings.guidance):
        del fields[name]
    return json.loads(json.dumps({"recipe": recipe, **settings.pinned(fields)}, default=str))


def with_defaults(before: dict, recipe: str, settings: TokenizerSettings) -> dict:
    """A run's config.json with the defaults of settings that were not there when it began."""

    def filled(known: dict, defaults: dict) -> dict:
        return {**defaults, **{name: filled(value, defaults[name]) if isinstance(value, dict) and isinstance(defaults.get(name), dict) else value
                               for name, value in known.items()}}

    return filled(before, to_json(recipe, type(settings)(data="", out=Path(), guidance=before.get("guidance"))))


def changed_setting(before: dict, now: dict, prefix: str = "") -> str | None:
    """The first setting that differs and may not, as "name: was X, now Y", or None."""
    for name in sorted(before.keys() | now.keys(), key=lambda name: (name != "recipe", name)):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            if found := changed_setting(was, is_now, f"{prefix}{name}."):
                return found
        elif was != is_now and (prefix or name not in FREE_ON_RESUME):
            return f"{prefix}{name}: was {was!r}, now {is_now!r}"
    return None
