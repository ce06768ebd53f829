"""Optimisers: which weights decay, and the learning rate of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from training.tokenizer_settings import TokenizerSettings
from vqkit.codebooks import Codebook


def create_optimizer(modules: Sequence[nn.Module], settings: TokenizerSettings, weight_decay: float, **options: bool) -> torch.optim.Optimizer:
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
