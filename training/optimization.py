"""Optimisers: which weights decay, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vqkit.codebooks import Codebook


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Adam or AdamW, and the learning rate of every step: what all training has in common."""

    steps: int
    """Optimiser steps."""
    lr: float
    """Learning rate; the largest one of a schedule."""
    betas: tuple[float, float]
    """Of Adam."""
    weight_decay: float = 0.0
    """Of AdamW, for weights of two or more dimensions but codes and embeddings."""
    warmup_steps: int = 0
    """Steps over which the rate grows linearly from nothing."""
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    """After the warm-up: "constant"; "cosine" or "exponential" from lr to final_lr."""
    final_lr: float = 0.0
    """Where a schedule ends; the rate stays there."""
    schedule_steps: int | None = None
    """Step at which a schedule ends. Default: steps, which may not grow then on resumption."""

    def __post_init__(self):
        for name in ("steps", "weight_decay", "warmup_steps", "final_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr: expected more than 0, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers, 0 <= beta < 1, got {self.betas}")
        if self.schedule_steps is not None and self.schedule_steps <= self.warmup_steps:
            raise ValueError(f"schedule_steps: expected more than the {self.warmup_steps} of the warm-up, got {self.schedule_steps}")
        if self.schedule == "exponential" and self.final_lr == 0:
            raise ValueError("final_lr: expected more than 0, where an exponential schedule can end, got 0")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        lr (s + 1) / w for s < w, the warm-up; then lr; or, with t = (s - w) / (e - w) up to the end e of the schedule and t = 1 from there,
        final_lr + (lr - final_lr) (1 + cos(pi t)) / 2 or lr (final_lr / lr)^t.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        length = self.schedule_end - self.warmup_steps
        passed = min(1.0, (step - self.warmup_steps) / length) if length > 0 else 1.0
        if self.schedule == "exponential":
            return self.lr * (self.final_lr / self.lr) ** passed
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * passed)) / 2

    @property
    def schedule_end(self) -> int:
        """The step from which a schedule stays at final_lr."""
        return self.steps if self.schedule_steps is None else self.schedule_steps

    def pinned(self, fields: dict) -> dict:
        """These settings as a run's config.json holds them: with the end of a schedule, which a larger number of steps must not move."""
        return fields if self.schedule == "constant" else fields | {"schedule_steps": self.schedule_end}


def create_optimizer(modules: Sequence[nn.Module], settings: AdamSettings, weight_decay: float, **options: bool) -> torch.optim.Optimizer:
    """Adam over all parameters of the modules; with a weight decay AdamW, which decays some of them. options: of torch, as fused."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if not weight_decay:
        return torch.optim.Adam(parameters, settings.lr, betas=settings.betas, **options)
    decayed, others = decayed_apart(modules)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, settings.lr, betas=settings.betas, **options)


def decayed_apart(modules: Sequence[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights that decay, those of layers with two or more dimensions, and all others.

    Codes are among the others, and embeddings: a decay would draw those that nothing selects towards the origin.
    """
    codes = {id(parameter) for module in modules for part in module.modules() if isinstance(part, (Codebook, nn.Embedding))
             for parameter in part.parameters(recurse=False)}
    parameters = [parameter for module in modules for parameter in module.parameters()]
    chosen = [parameter.dim() >= 2 and id(parameter) not in codes for parameter in parameters]
    return ([parameter for parameter, yes in zip(parameters, chosen) if yes], [parameter for parameter, yes in zip(parameters, chosen) if not yes])


def set_rate(rate: float, *optimizers: torch.optim.Optimizer) -> None:
    """Give all parameters this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
