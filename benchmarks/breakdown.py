"""What quantisation takes of a training step: codebook, search, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.recipe_step import Step, deterministic
from vqkit.codebooks import Codebook
from vqkit.codebooks.generated import GeneratedCodebook
from vqkit.quantizers.health import HealthMonitor

_SEARCH, _GRADIENTS, _STATISTICS = "search", "gradients", "statistics"
_OPERATORS = {
    "vqkit::nearest_codes": _SEARCH,
    "vqkit::straight_through": _GRADIENTS,
    "vqkit::straight_through_backward": _GRADIENTS,
}
_LABEL = "benchmarks::statistics"
_PASSES = 3


@dataclass(frozen=True)
class Share:
    """Seconds of a step that go into quantisation, forward and backward.

    codebook: making codes that are computed, and its gradient; search; gradients: straight-through and the losses, both ways;
    statistics: running means, anchors, counts of use. What is left of the whole is layout, projections and Python.
    """

    codebook: float
    search: float
    gradients: float
    statistics: float


def latents_of(step: Step) -> Tensor:
    """What the quantizer is given in a step, (B, D, h, w)."""
    seen: list[Tensor] = []
    handle = step.run.model.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    try:
        step()
    finally:
        handle.remove()
    return seen[0]


def quantizer_call(step: Step, latents: Tensor) -> Callable[[], None]:
    """The step's quantizer alone, forward and backward, from gradients of its output and of its loss to latents and parameters."""
    quantizer, number = step.run.model.quantizer, 0
    parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    inputs = latents.detach().clone().requires_grad_()
    options = {"rate": rate} if (rate := _mean_rate(quantizer)) else {}
    upstream, one = torch.randn_like(inputs), torch.ones((), device=inputs.device)

    def call() -> None:
        nonlocal number
        number += 1
        torch.manual_seed(number)
        with deterministic(step.deterministic):
            # As in the step: what layers a quantizer has take what the networks give.
            with step.run.autocast():
                found = quantizer(inputs, **options)
            torch.autograd.grad((found.quantized, found.loss), (inputs, *parameters), (upstream, one), allow_unused=True)

    return call


def measure_share(step: Step, latents: Tensor, seconds_of: Callable[[Callable[[], object]], float]) -> Share:
    """Where the time of vqkit's quantizer goes, on the CPU; `seconds_of` times a call."""
    quantizer = step.run.model.quantizer
    call = quantizer_call(step, latents)
    call()
    undo = [_labelled(module, name) for module in quantizer.modules() for name in _learning(module)]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(_PASSES):
                call()
    finally:
        for restore in undo:
            restore()
    seconds = dict.fromkeys((_SEARCH, _GRADIENTS, _STATISTICS), 0.0)
    for event in recorded.events():
        part = _STATISTICS if event.name == _LABEL else _OPERATORS.get(event.name)
        # An anchor's search belongs to the statistics that ask for it.
        if part and not _inside(event, {_LABEL, *_OPERATORS}):
            seconds[part] += event.cpu_time_total * 1e-6 / _PASSES
    return Share(_generation(quantizer, step, seconds_of), **seconds)


def _mean_rate(quantizer: nn.Module) -> int | None:
    """The mean of the rates that RAQ draws, which stands for all; None of other quantizers."""
    rates = getattr(quantizer, "rates", None)
    return sum(rates) // 2 if rates else None


def _learning(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Codebook):
        return ("prepare", "observe")
    return ("observe",) if isinstance(module, HealthMonitor) else ()


def _labelled(module: nn.Module, name: str) -> Callable[[], None]:
    """Let the profiler see this method of the module; returns what undoes it."""
    method = getattr(module, name)

    def labelled(*arguments, **options):
        with record_function(_LABEL):
            return method(*arguments, **options)

    setattr(module, name, labelled)
    return lambda: delattr(module, name)


def _inside(event, names: set[str]) -> bool:
    while (event := event.cpu_parent) is not None:
        if event.name in names:
            return True
    return False


def _generation(quantizer: nn.Module, step: Step, seconds_of: Callable) -> float:
    """Seconds to make the codes of every codebook that computes them, with the gradient to its parameters."""
    total, rate = 0.0, _mean_rate(quantizer)
    for codebook in quantizer.modules():
        parameters = [parameter for parameter in codebook.parameters() if parameter.requires_grad]
        if not isinstance(codebook, GeneratedCodebook) or not parameters:
            continue
        make = (lambda codebook=codebook: codebook.adapted(rate)) if rate else codebook
        upstream = torch.randn_like(make().detach())

        def call(make=make, parameters=parameters, upstream=upstream):
            with deterministic(step.deterministic):
                with step.run.autocast():
                    codes = make()
                torch.autograd.grad(codes, parameters, upstream.to(codes.dtype), allow_unused=True)

        total += seconds_of(call)
    return total
