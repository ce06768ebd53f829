"""How tokenizers are trained: the settings of each kind, typed and checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from training.optimization import AdamSettings
from vqkit.models import (
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
from vqkit.objectives import GuidanceConfig, TranslationConfig


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
class TranslationSettings(TranslationConfig):
    """Translation of codes into captions."""

    text_encoder: str = "minilm"
    """The text model whose tokens are predicted and whose token embeddings are used, frozen: a transformers folder or name, or "minilm"."""

    @property
    def config(self) -> TranslationConfig:
        """What the module needs of it."""
        return TranslationConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TranslationConfig)})


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings(AdamSettings):
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
    """Learning rate of Adam, for tokenizer and discriminator; the largest one of a schedule."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Of Adam, of both."""
    weight_decay: float = 0.0
    """Of AdamW, for the tokenizer's weights of two or more dimensions but codes and embeddings; the discriminator has none."""
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
    """VQ-GAN's PatchGAN, or StyleGAN2's, for pictures of a power of two."""
    disc_loss: Literal["hinge", "non_saturating"] | None = None
    """Of both sides of adversarial training. Default: the discriminator's own paper's, hinge for "patch", non-saturating for "style"."""
    r1_weight: float = 0.0
    """Of the squared gradient of the discriminator at real pictures; 10 is usual with "style"."""
    disc_channels: int = 32
    """Width of the discriminator's first layer; of "style" at 512 pixels."""
    disc_layers: int = 2
    """Halvings in the discriminator."""
    disc_normalization: Literal["group", "batch"] = "group"
    """"group" gives the same numbers on one rank or many; "batch" is the published one."""
    guidance: Literal["lgvq", "translation"] | None = None
    """Captions guide the codes, one random caption a picture: "lgvq" by three alignments, "translation" by a decoder that reads the caption
    off the codes (VQCT-VLT). Mirrored pictures contradict "left" and "right": see --flip."""
    lg: LGVQSettings = LGVQSettings()
    """Of --guidance lgvq."""
    vlt: TranslationSettings = TranslationSettings()
    """Of --guidance translation."""
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
        super().__post_init__()
        for name in ("resolution", "batch_size", "accumulation", "save_every", "log_every", "disc_channels", "disc_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("grad_clip", "structural_weight", "disc_start", "disc_weight", "r1_weight", "logit_laplace_weight",
                     "memory_budget", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
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
class RAQVQGANSettings(TokenizerSettings):
    """Training of a rate-adaptive VQ-GAN."""

    model: RAQVQGANConfig = RAQVQGANConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class RQVAESettings(TokenizerSettings):
    """Training of a VQ-GAN whose positions are sums of codes."""

    model: RQVAEConfig = RQVAEConfig()
    """Shape of the model."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings(TokenizerSettings):
    """Training of an SGC-VQGAN: as VQ-GAN, with data that have masks."""

    unlabelled: int | None = None
    """The number in the masks that says nothing of a pixel, as 11 in CamVid and 255 in many others."""
    model: SGCVQGANConfig = SGCVQGANConfig()
    """Shape of the model; `classes` is one more than the highest class in the masks."""

    def __post_init__(self):
        super().__post_init__()
        if self.unlabelled is not None and not 0 <= self.unlabelled <= 255:
            raise ValueError(f"unlabelled: expected 0..255, got {self.unlabelled}")


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
