"""Named recipes: every setting of a tokenizer's training, typed, with a default that was thought about."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from vqkit.models import CHANNEL_MULTIPLIERS, ADQConfig, RAQConfig, V2LConfig, ViTVQGANConfig, VQCTConfig, VQGANConfig, VQVAEConfig
from vqkit.objectives import GuidanceConfig

# What may differ between a run and its resumption: none of it changes what the run computes.
FREE_ON_RESUME = ("out", "steps", "workers", "memory_budget", "save_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class LGVQSettings(GuidanceConfig):
    """Guidance by captions; every weight in LG-VQ's published value for TextCaps and CelebA-HQ."""

    text_encoder: str = "minilm"
    """The frozen text model: the folder or the name of a transformers model (the paper's is CLIP ViT-B/32), or "minilm"."""

    @property
    def config(self) -> GuidanceConfig:
        """What the module needs of it."""
        return GuidanceConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(GuidanceConfig)})


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How a tokenizer is trained; the model's own settings are in `model`, a different class for each model."""

    data: str = tyro.MISSING
    """A folder or zip with the splits train, val, test; or "scenes", the built-in pictures."""
    out: Path = tyro.MISSING
    """The run's folder. The same command on a stopped run resumes it."""
    steps: int = 1000
    """Optimiser steps. A finished run goes on where a larger number is given."""
    resolution: int = 64
    """Side of the training pictures in pixels, a multiple of the model's downsampling."""
    fit: Literal["crop", "stretch"] = "crop"
    """Cut the largest centred square, or squeeze the whole picture."""
    flip: bool = True
    """Mirror every second picture, chosen by the seed."""
    batch_size: int = 32
    """Pictures in a pass, on each rank."""
    accumulation: int = 1
    """Passes in a step: the step's batch is batch_size x accumulation x ranks."""
    lr: float = 4e-4
    """Learning rate of Adam with betas (0.5, 0.9), for tokenizer and discriminator."""
    grad_clip: float = 0.0
    """Largest norm of the tokenizer's gradient; 0 clips nothing."""
    ema_decay: float = 0.99
    """Of the running mean of the weights, which is the model that is saved and evaluated; 0 saves the last weights."""
    pixel_loss: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared difference."""
    structural_weight: float = 0.0
    """Of one minus structural similarity at three scales; a stand-in for LPIPS that needs no weights."""
    lpips_weights: Path | None = None
    """VGG16's ImageNet weights; given, LPIPS is added to the pixel loss."""
    logit_laplace_weight: float = 0.1
    """Of the likelihood, for decoders that predict a distribution of every value (ViT-VQGAN); others have none."""
    disc_start: int = 20_000
    """First step with a discriminator."""
    disc_weight: float = 0.8
    """Of the adversarial term, before the adaptive factor; 0 trains without a discriminator."""
    disc_adaptive: bool = True
    """Balance the adversarial term's gradient against the reconstruction's; False: its weight is fixed."""
    discriminator: Literal["patch", "style"] = "patch"
    """VQ-GAN's PatchGAN with hinge losses, or StyleGAN2's with non-saturating ones, for pictures of a power of two."""
    r1_weight: float = 0.0
    """Of the squared gradient of the discriminator at real pictures; 10 is usual with "style"."""
    disc_channels: int = 32
    """Width of the discriminator's first layer; of "style" at 512 pixels."""
    disc_layers: int = 2
    """Halvings in the discriminator."""
    disc_normalization: Literal["group", "batch"] = "group"
    """"group" gives the same numbers on one rank or many; "batch" is the published one."""
    guidance: Literal["lgvq"] | None = None
    """"lgvq": captions guide the codes, one random caption a picture. Mirrored pictures contradict "left" and "right": see --flip."""
    lg: LGVQSettings = LGVQSettings()
    """Of --guidance lgvq."""
    seed: int = 0
    """Of weights, order, flips, dropout, captions, masked words and of the scenes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks; auto is bf16 where the device computes it fast. The code search is in float32 always."""
    device: str = "auto"
    """"cuda", "cuda:1", "cpu"; auto is cuda where there is one."""
    workers: int | None = None
    """Processes that decode pictures; 0 decodes in the training process. Default: half of the processors, at most 8."""
    memory_budget: float = 2.0
    """GiB in which decoded pictures are kept; a larger data set is decoded anew in every epoch."""
    save_every: int = 100
    """Steps between checkpoints; the last two are kept."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""

    def __post_init__(self):
        for name in ("resolution", "batch_size", "accumulation", "save_every", "log_every", "disc_channels", "disc_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("steps", "grad_clip", "structural_weight", "disc_start", "disc_weight", "r1_weight", "logit_laplace_weight",
                     "memory_budget", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr: expected more than 0, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 <= ema_decay < 1, got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class VQVAESettings(TokenizerSettings):
    """Training of a VQ-VAE."""

    model: VQVAEConfig = VQVAEConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class VQGANSettings(TokenizerSettings):
    """Training of a VQ-GAN, or of the same without a quantizer."""

    model: VQGANConfig = VQGANConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class ViTVQGANSettings(TokenizerSettings):
    """Training of a ViT-VQGAN."""

    model: ViTVQGANConfig = ViTVQGANConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class RAQSettings(TokenizerSettings):
    """Training of a rate-adaptive VQ-VAE."""

    model: RAQConfig = RAQConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class ADQSettings(TokenizerSettings):
    """Training of a VQ-GAN that chooses between codebooks."""

    model: ADQConfig = ADQConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class WordSettings(TokenizerSettings):
    """Training of a tokenizer whose codes are words."""

    words: str = "captions"
    """"captions": the most frequent words of the training captions; or a file that `Vocabulary.save` wrote."""
    adjectives: int = 1024
    """Number of adjectives; filled up from WordNet where the captions have fewer."""
    nouns: int = 1024
    """Number of nouns, likewise."""


@dataclass(frozen=True, kw_only=True)
class VQCTSettings(WordSettings):
    """Training of a VQCT: as VQ-GAN, with words for codes."""

    model: VQCTConfig = VQCTConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class V2LSettings(WordSettings):
    """Training of a V2L tokenizer: words and phrases through one linear map."""

    model: V2LConfig = V2LConfig()
    """Shape of the model."""


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

# Published: Adam(0.9, 0.99) with weight decay, a warm-up and a cosine; the loop has one constant rate and its own betas.
_VIT_TRAINING = {"resolution": 256, "batch_size": 256, "lr": 1e-4, "steps": 500_000, "ema_decay": 0.0, "pixel_loss": "l2", "disc_weight": 0.1,
                 "disc_adaptive": False, "discriminator": "style", "disc_channels": 64, "r1_weight": 10.0, "disc_start": 0,
                 "save_every": 2000, "log_every": 50}

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
        model=RAQConfig(channels=64, codebook_size=256, rates=(16, 256)), pixel_loss="l2", disc_weight=0.0, lr=5e-4)),
    "adq": Recipe("adq", "ADQ: a VQ-GAN that chooses for each picture between few long and many short codes", ADQSettings(
        model=ADQConfig(**_SMALL, capacity=32768, threshold_ema_dead_code=0.1))),
    "vit-vqgan": Recipe("vit-vqgan", "ViT-VQGAN, f8, small: a transformer of 4 layers, 1,024 codes of 32 by cosine", ViTVQGANSettings(
        model=ViTVQGANConfig(depth=4, width=192, heads=4, hidden=768, grid=8, codebook_size=1024), pixel_loss="l2", disc_weight=0.1,
        disc_adaptive=False, discriminator="style", disc_channels=2, r1_weight=10.0)),
    "autoencoder": Recipe("vqgan", "the same trunk without quantisation: the ceiling of what a codebook can reach", VQGANSettings(
        model=VQGANConfig(**_SMALL, **_HALVES, quantize=False))),
    "vqgan-f16": Recipe("vqgan", "VQ-GAN as published: f16 at 256x256, 1,024 codes of 256; a GPU and days", VQGANSettings(
        model=VQGANConfig(**_PAPER, codebook_size=1024), **_PAPER_TRAINING)),
    "vqct-f16": Recipe("vqct", "VQCT as published: f16 at 256x256, 1,949 adjectives and 4,258 nouns; a GPU and days", VQCTSettings(
        model=VQCTConfig(**_PAPER), adjectives=1949, nouns=4258, **_PAPER_TRAINING)),
    "cvq-f16": Recipe("vqgan", "CVQ on the published f16 VQ-GAN; a GPU and days", VQGANSettings(
        model=VQGANConfig(**_PAPER, codebook_size=1024, codebook="anchored"), **_PAPER_TRAINING)),
    "vit-vqgan-small": Recipe("vit-vqgan", "ViT-VQGAN small as published: 8 layers, f8 at 256x256, 8,192 codes of 32; GPUs and days", ViTVQGANSettings(
        model=ViTVQGANConfig(), **_VIT_TRAINING)),
    "vit-vqgan-base": Recipe("vit-vqgan", "ViT-VQGAN base as published: 12 layers", ViTVQGANSettings(
        model=ViTVQGANConfig(size="base"), **_VIT_TRAINING)),
    "vit-vqgan-large": Recipe("vit-vqgan", "ViT-VQGAN large as published: 32 layers", ViTVQGANSettings(
        model=ViTVQGANConfig(size="large"), **_VIT_TRAINING)),
}


def _guided(recipe: Recipe, summary: str) -> Recipe:
    """The recipe with LG-VQ's guidance, and without mirrored pictures, of which captions say the wrong side."""
    return dataclasses.replace(recipe, summary=summary, settings=dataclasses.replace(recipe.settings, guidance="lgvq", flip=False))


RECIPES |= {
    "vqvae+lg": _guided(RECIPES["vqvae"], "the same VQ-VAE with codes guided by captions (LG-VQ)"),
    "vqgan+lg": _guided(RECIPES["vqgan"], "the same small VQ-GAN with codes guided by captions (LG-VQ)"),
    "vqct+lg": _guided(RECIPES["vqct"], "the same small VQCT with codes guided by captions (LG-VQ)"),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ValueError naming the known ones."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{hint}")
    return RECIPES[name]


def to_json(recipe: str, settings: TokenizerSettings) -> dict:
    """What RUN/config.json holds."""
    fields = dataclasses.asdict(settings)
    # Runs without guidance have one configuration, whatever --lg says and whether or not it was known when they began.
    if settings.guidance is None:
        del fields["guidance"], fields["lg"]
    return json.loads(json.dumps({"recipe": recipe, **fields}, default=str))


def with_defaults(before: dict, recipe: str, settings: TokenizerSettings) -> dict:
    """A run's config.json with the defaults of settings that were not there when it began."""

    def filled(known: dict, defaults: dict) -> dict:
        return {**defaults, **{name: filled(value, defaults[name]) if isinstance(value, dict) and isinstance(defaults.get(name), dict) else value
                               for name, value in known.items()}}

    return filled(before, to_json(recipe, type(settings)(data="", out=Path(), guidance=settings.guidance)))


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
