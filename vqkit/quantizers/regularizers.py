"""Terms that a quantizer adds to its loss, on top of commitment: what the codes or the soft assignments should look like.

Each is called with latents (N, D), zero where masked, codes (K, D), indices (N, top_k), -1 where masked, and valid (N,) bool, and
returns (). ``acts_on`` says whom its gradient reaches: with "codes" it does nothing for a codebook that no gradient trains.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.ops import code_counts, soft_assignment
from vqkit.ops.nearest import Metric

# Closenesses of one block of codes: bounds the memory of ``Contrastive``.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Orthogonality:
    """sum over i, j of cos(c_i, c_j)^2 / K^2 - 1 / K: zero where all codes are orthogonal. Gradient to the codes.

    weight: its factor in the loss.
    active_codes_only: only codes that the batch selected count, K being their number.
    max_codes: at most this many codes, drawn at random at each call from torch's default generator; K as above.

    Computed as |C^T C|^2 of the codes of unit length: O(K D + D^2) memory, no K x K.

    Source: Shin et al. 2021 (arXiv 2112.00384), equation 2.
    """

    weight: float
    active_codes_only: bool = False
    max_codes: int | None = None
    name: ClassVar[str] = "orthogonality"
    acts_on: ClassVar[str] = "codes"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        size = codes.shape[0]
        counted = torch.ones(size, dtype=torch.bool, device=codes.device)
        if self.active_codes_only:
            counted = code_counts(indices, size) > 0
        if self.max_codes is not None and self.max_codes < size:
            drawn = torch.rand(size, device=codes.device).masked_fill(~counted, -1).topk(self.max_codes).indices
            counted = counted & torch.zeros_like(counted).index_fill(0, drawn, True)
        number = counted.sum()
        directions = normalize(codes, dim=-1).where(counted[:, None], 0.0)
        return ((directions.T @ directions).square().sum() - number) / number.clamp(min=1).square()


@dataclass(frozen=True)
class Diversity:
    """Minus the entropy of the batch's mean of softmax(-|x - c| * temperature), in nats: least where all codes get the same share.

    weight: its factor in the loss.
    temperature: an inverse temperature, as its users know it.
    metric: that of the quantizer; "cosine": softmax(similarity * temperature).

    Gradient to latents and codes. The mean is over the latents of all ranks. Every N x K distance is computed, twice with the
    backward pass, in blocks of rows.

    Source: ``codebook_diversity_loss_weight`` of vector-quantize-pytorch.
    """

    weight: float
    temperature: float = 100.0
    metric: Metric = "l2"
    name: ClassVar[str] = "diversity"
    acts_on: ClassVar[str] = "latents and codes"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        affinity = "similarity" if self.metric == "cosine" else "distance"
        mass, _ = soft_assignment(latents, codes, valid, scale=self.temperature, affinity=affinity)
        return -_entropy_of_mean(mass, valid)


@dataclass(frozen=True)
class Entropy:
    """mean of H(p_n) - gamma * H(mean of p_n), p_n = softmax(-|x_n - c|^2 / temperature): decided latents, all codes used.

    weight: its factor in the loss.
    gamma: how much the use of all codes counts against the decidedness of each latent.
    temperature: of the softmax.

    Gradient to latents and codes; in nats. The entropy of the mean is that of all ranks. For codes and latents of unit length, the
    metric "cosine", the same as softmax(2 similarity / temperature). Cost and memory as ``Diversity``.

    Source: the code of MaskGIT (Chang et al. 2022, arXiv 2202.04200), which has it at weight 0.1; LFQ: Yu et al. 2023
    (arXiv 2310.05737), equation 5.
    """

    weight: float
    gamma: float = 1.0
    temperature: float = 0.01
    name: ClassVar[str] = "entropy"
    acts_on: ClassVar[str] = "latents and codes"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        mass, entropy = soft_assignment(latents, codes, valid, scale=1 / self.temperature, affinity="squared")
        return entropy / valid.sum().clamp(min=1) - self.gamma * _entropy_of_mean(mass, valid)


@dataclass(frozen=True)
class Contrastive:
    """Pulls each code to its nearest latents, away from the farther half: the mean over the codes of a cross-entropy.

    For code k, with s_kn = -|x_n - c_k|^2 (l2) or the similarity (cosine) and N latents: the positive is the mean of the
    max(1, N // K) largest s_kn, the negatives are the N // 2 smallest, and the term is -log of the positive's share in
    softmax([positive, negatives] / temperature). Gradient to the codes.

    weight: its factor in the loss.
    temperature: see the formula.
    metric: that of the quantizer.

    Every code ranks all N latents: O(K N log N) work, in blocks of codes.

    Source: Zheng and Vedaldi 2023 (arXiv 2307.15139), section 3.3; the numbers of positives and negatives, the temperature and the
    detached latents are those of its published code.
    """

    weight: float
    temperature: float = 0.07
    metric: Metric = "l2"
    name: ClassVar[str] = "contrastive"
    acts_on: ClassVar[str] = "codes"

    def __call__(self, latents: Tensor, codes: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
        loss, _ = _contrastive(latents.detach(), codes, valid, 1 / self.temperature, self.metric == "cosine")
        return loss


def _entropy_of_mean(mass: Tensor, valid: Tensor) -> Tensor:
    """H(mass / number of latents), both summed over all ranks."""
    total, number = sum_over_ranks(mass.detach(), valid.sum().to(mass.dtype))
    # The gradients that data parallel wrappers average over the ranks, without a collective in the backward pass.
    total = total + world()[1] * (mass - mass.detach())
    # Where a share has underflowed, log 0 would be a gradient of infinity.
    mean = (total / number.clamp(min=1)).clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.special.entr(mean).sum()


@torch.library.custom_op("vqkit::contrastive", mutates_args=())
def _contrastive(latents: Tensor, codes: Tensor, valid: Tensor, scale: float, cosine: bool) -> tuple[Tensor, Tensor]:
    """The mean over the codes and its gradient to the codes, (K, D), which costs little beside it."""
    size, number = codes.shape[0], valid.sum()
    positives, negatives = (number // size).clamp(min=1), number // 2
    place = torch.arange(latents.shape[0], device=latents.device)
    near, far = place < positives, (place >= number - negatives) & (place < number)
    gradient, total = torch.zeros_like(codes), codes.new_zeros((), dtype=torch.float64)
    rows = latents.where(valid[:, None], 0.0)
    # Distances do not depend on a common offset, their rounding does.
    centre = torch.zeros_like(codes[0]) if cosine else rows.sum(0) / number.clamp(min=1)
    rows, table = (rows - centre).where(valid[:, None], 0.0), codes - centre
    step = max(1, _BLOCK // max(1, latents.shape[0]))
    with torch.autocast(latents.device.type, enabled=False):
        for block, into in zip(table.split(step), gradient.split(step)):
            closeness = block @ rows.T if cosine else -torch.cdist(block, rows).square()
            ranked, order = closeness.masked_fill(~valid, -torch.inf).sort(dim=-1, descending=True, stable=True)
            positive = ranked.where(near, 0.0).sum(-1, keepdim=True) / positives
            logits = torch.cat([positive, ranked.masked_fill(~far, -torch.inf)], -1) * scale
            log_share = logits.log_softmax(-1)
            total -= log_share[:, 0].sum()
            share = log_share.exp()
            pull = share[:, 1:] + ((share[:, :1] - 1) / positives) * near
            pull = torch.zeros_like(pull).scatter_(1, order, pull * (scale / size))
            moved = pull @ rows
            into.copy_(moved if cosine else 2 * (moved - pull.sum(-1, keepdim=True) * block))
    some = number > 0
    return (total / size).to(codes.dtype).where(some, 0.0), gradient.where(some, 0.0)


@_contrastive.register_fake
def _(latents, codes, valid, scale, cosine):
    return codes.new_empty(()), torch.empty_like(codes)


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_loss, _):
    return None, grad_loss * ctx.saved_tensors[0], None, None, None


_contrastive.register_autograd(_backward, setup_context=_save)
