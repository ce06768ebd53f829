"""The training loop of tokenizers, to be read from `train` downwards."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import vqkit.models
from training import checkpoint
from training.data.batches import PictureDataset, TrainingOrder, default_workers, load, to_float
from training.data.masked import MaskedPictureDataset
from training.data.sources import Source, open_split
from training.distributed import Ranks, choose_precision
from training.guidance import Guide, create_guide
from training.log import Meter, RecentUsage, RunLog
from training.loop import NoLog, parallel, say, synchronised, train_run
from training.optimization import create_optimizer, set_rate
from training.recipes import RECIPES, to_json, with_defaults
from training.tokenizer_settings import MaskSettings, TokenizerSettings, WordSettings
from training.vocabulary import find_vocabulary
from vqkit.language import Vocabulary
from vqkit.models import Tokenizer
from vqkit.nn import PatchDiscriminator, StyleDiscriminator
from vqkit.objectives import LPIPS, AdversarialLoss, ReconstructionLoss, logit_laplace_loss, r1_penalty


def train(recipe: str, settings: TokenizerSettings) -> Path:
    """Train a tokenizer, or go on with a stopped run, until `settings.steps`; returns the run's folder. Raises as `train_run` does."""

    def create(ranks: Ranks) -> Run:
        return Run(recipe, settings, open_split(settings.data, "train", seed=settings.seed), ranks)

    return train_run(recipe, settings, to_json(recipe, settings), lambda before: with_defaults(before, recipe, settings), create)


class Batch(NamedTuple):
    """The pictures of one pass, its number in the run, the (epoch, index) that were ordered, the indices that are shown, and their masks."""

    images: Tensor
    number: int
    keys: list[tuple[int, int]]
    indices: list[int]
    masks: Tensor | None = None


class Run:
    """All that a training run consists of; `advance` is one step."""

    def __init__(self, recipe: str, settings: TokenizerSettings, source: Source, ranks: Ranks):
        self.recipe, self.settings, self.ranks, self.step = recipe, settings, ranks, 0
        self.dataset = create_dataset(settings, source)
        # Every rank draws the same weights, and later the same dropout: a codebook generated with dropout is then one codebook.
        torch.manual_seed(settings.seed)
        device = ranks.device
        self.model = create_model(recipe, settings, source, ranks).to(device).train()
        if settings.resolution % (f := self.model.downsampling):
            raise ValueError(f"resolution: expected a multiple of {f}, the model's downsampling, got {settings.resolution}")
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.reconstruction = ReconstructionLoss(settings.pixel_loss, settings.structural_weight if settings.lpips_weights is None else 0.0)
        self.lpips = LPIPS(settings.lpips_weights).to(device) if settings.lpips_weights else None
        kind = settings.disc_loss or {"patch": "hinge", "style": "non_saturating"}[settings.discriminator]
        self.adversarial = AdversarialLoss(kind, settings.disc_weight, settings.disc_start, settings.disc_adaptive)
        self.discriminator = create_discriminator(settings).to(device)
        self._check_discriminator()
        self.guide = self._create_guide(source) if settings.guidance else None
        self.optimizer = create_optimizer([self.model, *([self.guide.module] if self.guide else [])], settings, settings.weight_decay)
        self.discriminator_optimizer = create_optimizer([self.discriminator], settings, weight_decay=0.0)
        self.parallel, self.parallel_discriminator = (parallel(module, ranks) for module in (self.model, self.discriminator))
        self.parallel_guidance = parallel(self.guide.module, ranks) if self.guide else None
        precision = choose_precision(settings.precision, device)
        self.autocast = lambda: torch.autocast(device.type, precision, enabled=precision != torch.float32)
        self.usage = RecentUsage(self.model.codebook_sizes, device)
        self.meter = Meter()
        self.log: RunLog | NoLog = NoLog()
        self._say_what_is_trained(precision)

    def restore(self) -> None:
        """Take up the newest checkpoint, where there is one, and open the log after it."""
        found = checkpoint.latest(self.settings.out)
        if found is not None:
            self.step = checkpoint.restore(found, *self._state(), self.ranks)
            say(self.ranks, f"{self.settings.out}: goes on from step {self.step}")
        self.ranks.barrier()
        if self.ranks.first:
            self.log = RunLog(self.settings.out / "log.jsonl", self.step)

    def batches(self) -> Iterator[Batch]:
        """All passes from this step on."""
        settings, ranks = self.settings, self.ranks
        order = TrainingOrder(len(self.dataset), settings.batch_size, settings.seed, first=self.step * settings.accumulation,
                              last=settings.steps * settings.accumulation, rank=ranks.rank, world=ranks.world)
        workers = default_workers() if settings.workers is None else settings.workers
        loaded = load(self.dataset, order, workers, ranks.device)
        for number, keys, (images, indices, *masks) in zip(range(order.first, order.last), order, loaded, strict=True):
            masks = masks[0].to(ranks.device, non_blocking=True) if masks else None
            yield Batch(to_float(images, ranks.device), number, keys, indices.tolist(), masks)

    def advance(self, batches: Iterator[Batch]) -> None:
        """One step: gradients of every pass, both optimisers, the running mean of the weights."""
        set_rate(self.settings.rate_at(self.step), self.optimizer, self.discriminator_optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        adversarial = self.adversarial.active(self.step)
        for number in range(self.settings.accumulation):
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            last = number + 1 == self.settings.accumulation
            terms, reconstruction = self._tokenizer_pass(batch, adversarial, last)
            if adversarial:
                terms["discriminator"] = self._discriminator_pass(batch.images, reconstruction, last)
            self.meter.add(terms, len(batch.images) * self.ranks.world, waited)
        if self.settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        if adversarial:
            self.discriminator_optimizer.step()
        self._update_average()
        self.step += 1

    def _tokenizer_pass(self, batch: Batch, adversarial: bool, last: bool) -> tuple[dict[str, Tensor], Tensor]:
        images = batch.images
        text = self.guide.read(batch.number, batch.keys, batch.indices) if self.guide else None
        with synchronised(self.parallel, last), synchronised(self.parallel_guidance, last):
            with self.autocast():
                output = self.parallel(images) if batch.masks is None else self.parallel(images, batch.masks)
            loss, terms = self.reconstruction(output.reconstruction, images)
            if self.lpips is not None:
                terms["lpips"] = self.lpips(output.reconstruction.float(), images).mean()
                loss = loss + terms["lpips"]
            if output.logit_laplace is not None:
                terms["logit_laplace"] = logit_laplace_loss(*output.logit_laplace, images)
                loss = loss + self.settings.logit_laplace_weight * terms["logit_laplace"]
            total = loss + output.loss
            if text is not None:
                with self.autocast():
                    guidance, parts = self.parallel_guidance(output.quantized, text)
                total, terms = total + guidance, terms | parts
            if adversarial:
                # Through the bare discriminator, whose own gradients are not wanted here.
                self.discriminator.requires_grad_(False)
                with self.autocast():
                    logits = self.discriminator(output.reconstruction)
                pull, parts = self.adversarial.generator(logits, loss, self.model.last_layer)
                self.discriminator.requires_grad_(True)
                total, terms = total + pull, terms | parts
            (total / self.settings.accumulation).backward()
        self.usage.add(self.step, [part.counts for part in output.parts])
        terms = terms | output.losses
        if output.perplexity is not None:
            terms["perplexity"] = output.perplexity
        return terms, output.reconstruction.detach()

    def _discriminator_pass(self, images: Tensor, reconstruction: Tensor, last: bool) -> Tensor:
        weight = self.settings.r1_weight
        with synchronised(self.parallel_discriminator, last):
            with self.autocast():
                images = images.requires_grad_() if weight else images
                real, fake = self.parallel_discriminator(images), self.parallel_discriminator(reconstruction)
            loss = self.adversarial.discriminator(real, fake)
            if weight:
                loss = loss + weight * r1_penalty(images, real)
            (loss / self.settings.accumulation).backward()
        return loss

    @torch.no_grad()
    def _update_average(self) -> None:
        """Running mean of the weights, faster at first: a mean over few steps must not remember the initial weights."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step)) if self.settings.ema_decay else 0.0
        for average, module in [(self.average, self.model), *([(self.guide.average, self.guide.module)] if self.guide else [])]:
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
            for mean, now in zip(average.buffers(), module.buffers(), strict=True):
                mean.copy_(now)

    def report(self) -> dict:
        """Write the log's next line and return it. Raises FloatingPointError where a loss is no longer a number."""
        entry = {"step": self.step, **self._mean_over_ranks(self.meter.read())}
        if self.model.codebook_sizes:
            entry["codebook_usage"] = self.usage.at(self.step - 1, self.ranks.maximum(self.usage.last_selected))
        for name, value in entry.items():
            if value != value:
                raise FloatingPointError(f"{name} is not a number at step {self.step}; a lower --lr or --grad-clip 1 may help")
        self.log.write(entry)
        return entry

    def _mean_over_ranks(self, means: dict[str, float]) -> dict[str, float]:
        summed = self.ranks.sum(torch.tensor(list(means.values()), dtype=torch.float64)) / self.ranks.world
        return dict(zip(means, summed.tolist()))

    def save(self) -> None:
        """A checkpoint, and the averaged model on its own in RUN/model."""
        checkpoint.save(self.settings.out, self.step, *self._state(), self.ranks)
        if self.ranks.first:
            self.average.save_pretrained(self.settings.out / "model")
            if self.guide:
                self.guide.save(self.settings.out / "model")

    def broken(self) -> list[str]:
        """Names of the pictures that could not be read."""
        return self.dataset.broken()

    def _state(self) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer], dict[str, Tensor]]:
        modules = {"model": self.model, "average": self.average, "discriminator": self.discriminator}
        if self.guide:
            modules |= {"guidance": self.guide.module, "average_guidance": self.guide.average}
        optimizers = {"optimizer": self.optimizer, "discriminator_optimizer": self.discriminator_optimizer}
        return modules, optimizers, {"last_selected": self.usage.last_selected}

    @torch.no_grad()
    def _create_guide(self, source: Source) -> Guide:
        """Guidance for maps as a picture of the run gives them."""
        settings, device = self.settings, self.ranks.device
        blank = torch.zeros(1, 3, settings.resolution, settings.resolution, device=device)
        # A copy: in eval mode a model may keep a codebook that training makes old.
        _, code_dim, grid, _ = copy.deepcopy(self.average)(blank).quantized.shape
        return create_guide(settings, source, code_dim, grid, device)

    def _check_discriminator(self) -> None:
        settings, smallest = self.settings, self.discriminator.minimum_size
        if settings.disc_weight and settings.disc_start < settings.steps and settings.resolution < smallest:
            raise ValueError(f"disc_layers: {self.settings.disc_layers} layers need pictures of at least {smallest} pixels, "
                             f"got resolution {self.settings.resolution}")

    def _say_what_is_trained(self, precision: torch.dtype) -> None:
        dataset, millions = self.dataset, sum(p.numel() for p in self.model.parameters()) / 1e6
        memory = f"kept in memory, {dataset.bytes_needed / 2**20:.0f} MiB" if dataset.kept_in_memory else \
            f"decoded every time: {dataset.bytes_needed / 2**30:.1f} GiB is over --memory-budget"
        codes = " + ".join(f"{size:,}" for size in self.model.codebook_sizes) or "no"
        where = f"{self.ranks.device}, {str(precision).removeprefix('torch.')}"
        say(self.ranks, f"{self.recipe}: {millions:.1f} M parameters, {codes} codes, f{self.model.downsampling}, {where}")
        say(self.ranks, f"loss: {self._named_loss()}")
        if self.guide and self.settings.flip:
            say(self.ranks, "half of the pictures are mirrored, of which captions with left and right say the wrong side; see --flip False")
        say(self.ranks, f"{len(dataset):,} pictures of {dataset.source.name} at {dataset.resolution}x{dataset.resolution}, {memory}")

    def _named_loss(self) -> str:
        settings = self.settings
        terms = [settings.pixel_loss.upper()]
        if self.lpips is not None:
            terms.append("LPIPS")
        elif settings.structural_weight:
            terms.append(f"{settings.structural_weight:g} x multi-scale structure (in the place of LPIPS, which needs --lpips-weights)")
        if getattr(self.model, "logit_laplace", False):
            terms.append(f"{settings.logit_laplace_weight:g} x logit-Laplace")
        if settings.disc_weight:
            terms.append(f"{settings.disc_weight:g} x adversarial from step {settings.disc_start:,}")
        if self.guide:
            terms.append(self.guide.describe())
        return " + ".join([*terms, *(["quantizer"] if self.model.quantizer is not None else [])])


def create_dataset(settings: TokenizerSettings, source: Source) -> PictureDataset:
    """The pictures of the run, with masks where the model learns from them."""
    options = {"fit": settings.fit, "memory_budget": int(settings.memory_budget * 2**30), "flip_seed": settings.seed if settings.flip else None}
    if isinstance(settings, MaskSettings):
        return MaskedPictureDataset(source, settings.resolution, classes=settings.model.classes, unlabelled=settings.unlabelled, **options)
    return PictureDataset(source, settings.resolution, replace_broken=True, **options)


def create_model(recipe: str, settings: TokenizerSettings, source: Source, ranks: Ranks) -> Tokenizer:
    """The recipe's model with fresh weights; over the run's vocabulary where codes are words, which is made at the first start."""
    config = dataclasses.asdict(settings.model)
    if not isinstance(settings, WordSettings):
        return vqkit.models.create(RECIPES[recipe].model, **config)
    path = settings.out / "vocabulary.safetensors"
    # Without config.json the run has not begun: a vocabulary that lies there may be of other settings.
    if ranks.first and not (path.exists() and (settings.out / "config.json").exists()):
        find_vocabulary(settings, source).save(path)
    ranks.barrier()
    vocabulary = Vocabulary.load(path)
    # Building draws random numbers and loading does not: the weights must not depend on which of the two was done.
    torch.manual_seed(settings.seed)
    return vqkit.models.create(RECIPES[recipe].model, vocabulary=vocabulary, **config)


def create_discriminator(settings: TokenizerSettings) -> PatchDiscriminator | StyleDiscriminator:
    """The discriminator that the settings ask for, with fresh weights."""
    if settings.discriminator == "patch":
        return PatchDiscriminator(settings.disc_channels, settings.disc_layers, normalization=settings.disc_normalization)
    return StyleDiscriminator(settings.resolution, settings.disc_channels)
