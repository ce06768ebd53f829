"""How many codes move where few were selected: the question of VQCT's figure 3, asked of any tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.models import Tokenizer

# Of the distance that the farthest one moves. What running means smooth and what rounding shifts is far below.
_LEAST = 1e-3


def codes_moved(model: Tokenizer, picture: Tensor, learning_rate: float = 1e-3) -> float | None:
    """Fraction of the codes whose vector one training step moves where a single position of a picture selected.

    model: changed by the step, and made double and eval.  picture: (1, 3, R, R) in [-1, 1].

    The quantizer's weighted loss of the first position alone is followed by plain gradient descent, so that no momentum of earlier
    steps moves anything; codebooks that learn without a gradient observe that position. A code counts as moved from a thousandth of
    the distance on that the farthest one of its part moves (ours). None for quantizers without code vectors.

    Source: figure 3 of arXiv 2403.10071 (VQCT), an illustration; the measure is ours.
    """
    # Asked for in training mode, generated codes are made with dropout.
    if not hasattr(model.eval().quantizer, "codes"):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before, after = _step(model.double().eval().requires_grad_(True), picture.double(), learning_rate)
    distances = [(now - then).norm(dim=1) for now, then in zip(after, before, strict=True)]
    moved = torch.cat([(part > 0) & (part >= _LEAST * part.max()) for part in distances])
    return moved.double().mean().item()


def _step(model: Tokenizer, picture: Tensor, learning_rate: float) -> tuple[list[Tensor], list[Tensor]]:
    """The codes before and after the step; those of eval mode, so that dropout does not count as movement."""
    with torch.no_grad():
        position = model.to_codes(model.encoder(picture))[:, :, :1, :1].clone()
    before = _code_vectors(model)
    with torch.enable_grad():
        losses = model.train().quantizer(position).losses
        loss = sum(model.loss_weights[name] * term for name, term in losses.items())
        trained = [parameter for parameter in model.quantizer.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else ()
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients):
            if gradient is not None:
                parameter -= learning_rate * gradient
    return before, _code_vectors(model.eval())


def _code_vectors(model: Tokenizer) -> list[Tensor]:
    codes = model.quantizer.codes
    return [part.detach().clone() for part in (codes if isinstance(codes, tuple) else (codes,))]
