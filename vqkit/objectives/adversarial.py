"""Adversarial losses and the weight that balances them against reconstruction."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x^))) from logits of any shape. Source: arXiv 1705.02894."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean D(x^) from logits of any shape. Source: arXiv 1705.02894."""
    return -fake.mean()


def non_saturating_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 (mean softplus(-D(x)) + mean softplus(D(x^))) from logits of any shape. Source: arXiv 1406.2661."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """mean softplus(-D(x^)) = -mean log sigmoid D(x^) from logits of any shape. Source: arXiv 1406.2661, section 3."""
    return F.softplus(-fake).mean()


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, maximum: float = 1e4
) -> Tensor:
    """How strongly the adversarial term may pull, from the gradients that both terms send to the decoder's last layer.

        lambda = clamp(|d reconstruction_loss / dW| / (|d generator_loss / dW| + 1e-4), 0, maximum)

    Args:
        reconstruction_loss, generator_loss: scalars that depend on `last_layer`; their graphs are kept.
        last_layer: W, the weight of the decoder's last convolution.

    Under an initialised torch.distributed both gradients are averaged over the ranks first (one small all-reduce, so
    every rank has to call it): the weight is then that of the whole batch, the same on every rank.

    Returns a detached scalar. A gradient that is zero gives maximum at most, never NaN.
    Raises RuntimeError where a loss does not depend on `last_layer`.
    Source: arXiv 2012.09841, equation 7; the bounds are those of its published code.
    """
    (nll_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (generator_grad,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        both = torch.stack((nll_grad.detach().float(), generator_grad.detach().float()))
        dist.all_reduce(both)
        nll_grad, generator_grad = both / dist.get_world_size()
    weight = nll_grad.float().norm() / (generator_grad.float().norm() + 1e-4)
    return weight.clamp(0.0, maximum).detach()


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """mean over pictures of |d sum(logits) / d picture|^2 / 2, to be weighted by gamma: real pictures should be a flat place of D.

    images: (B, C, H, W) that require a gradient.  logits: D(images), one or many a picture.
    Returns a scalar in float32 or better, differentiable in the discriminator's parameters.
    Source: Mescheder et al., Which Training Methods for GANs do actually Converge?, arXiv 1801.04406, equation 9.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()


class AdversarialLoss(nn.Module):
    """The two sides of adversarial training, with the adaptive weight and a delayed start.

        generator side:     w_t * lambda * g(D(x^)),   discriminator side:   [t >= start] * d(D(x), D(x^))

    w_t is `weight` from step `start` on and 0 before; lambda is `adaptive_weight`, or 1 where not `adaptive`.

    Args:
        kind: "hinge" or "non_saturating".
        weight: 0.8 as published.
        start: the first step with an adversarial term. Published: 250,001 for ImageNet, 30,001 for faces, 10,000 for
            custom data and VQCT.
        adaptive: False for a fixed weight, as ViT-VQGAN's 0.1.

    Raises ValueError for another kind, or a negative weight or start.
    Source: arXiv 2012.09841, equations 5 to 7.
    """

    def __init__(self, kind: str = "hinge", weight: float = 0.8, start: int = 10_000, adaptive: bool = True):
        super().__init__()
        losses = {
            "hinge": (hinge_generator_loss, hinge_discriminator_loss),
            "non_saturating": (non_saturating_generator_loss, non_saturating_discriminator_loss),
        }
        if kind not in losses:
            raise ValueError(f"kind: got {kind!r}, expected one of {sorted(losses)}")
        if weight < 0 or start < 0:
            raise ValueError(f"weight, start: got {weight}, {start}, expected 0 or more")
        self._generator_loss, self._discriminator_loss = losses[kind]
        self.kind, self.weight, self.start, self.adaptive = kind, weight, start, adaptive

    def active(self, step: int) -> bool:
        """Whether the discriminator is needed at this step."""
        return step >= self.start and self.weight > 0

    def generator(
        self, fake_logits: Tensor, reconstruction_loss: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term that an active step adds to the tokenizer's loss, and its parts "generator" and, where adaptive, "adaptive_weight".

        fake_logits are D(reconstruction), with the graph to `last_layer`; the adaptive weight has no gradient.
        """
        loss = self._generator_loss(fake_logits.float())
        if not self.adaptive:
            return self.weight * loss, {"generator": loss}
        adaptive = adaptive_weight(reconstruction_loss, loss, last_layer)
        return self.weight * adaptive * loss, {"generator": loss, "adaptive_weight": adaptive}

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss of an active step, from D(images) and D(reconstruction.detach())."""
        return self._discriminator_loss(real_logits.float(), fake_logits.float())

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, weight={self.weight}, start={self.start}, adaptive={self.adaptive}"
