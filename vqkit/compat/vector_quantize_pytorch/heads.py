"""How the latents of one codebook become codes: the nearest, the nearest few, or the nearest of codes that move for every latent."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqkit.compat.embedding import code_vectors
from vqkit.compat.vector_quantize_pytorch.codebook import Learning
from vqkit.ops import nearest_codes, straight_through
from vqkit.quantizers import Quantizer

# Finds indices (N,) and the codes there, (N, D), with a gradient, for latents (N, D) and codes (K, D) that it moves for every row.
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """What is particular about one call.

    frozen: nothing is learned.  topk: the nearest so many codes are returned, None: the nearest.  chosen: (...,) codes to take.
    targets: (...[, H]) codes of which the cross-entropy is asked for.  transform: see there.
    weight, accumulates, ema_update: of the running means.
    """

    frozen: bool = False
    topk: int | None = None
    chosen: Tensor | None = None
    targets: Tensor | None = None
    transform: Transform | None = None
    weight: float | Tensor | Callable | None = None
    accumulates: bool = False
    ema_update: bool | None = None


@dataclass(frozen=True)
class Found:
    """Of one head: quantized (..., 1 or k, D), indices (..., 1 or k), the commitment, () or (..., k), and other terms by name."""

    quantized: Tensor
    indices: Tensor
    commitment: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Head:
    """One codebook in one call of ``VectorQuantize``.

    learning: of its codebook.  terms: the regularizers of the call.  routed: whether the gradient passes through the input.
    variance: of the noise of ``directional_reparam``, None: the gradient is the quantizer's.  sync_update_v: see ``VectorQuantize``.
    """

    quantizer: Quantizer
    learning: Learning
    step: Step
    terms: tuple
    routed: bool
    variance: float | None
    sync_update_v: float

    def quantize(self, latents: Tensor, valid: Tensor) -> Found:
        """Quantize latents (..., H, D), of which those that are valid, (..., H) bool, count."""
        quantizer, step = self.quantizer, self.step
        if step.topk is not None:
            return self._nearest_few(latents, valid)
        if step.transform is not None:
            return self._transformed(latents, valid)
        quantizer.regularizers = self.terms
        learn = False if step.frozen else None
        chosen = None if step.chosen is None else step.chosen[..., None]
        result = quantizer(latents, valid, indices=chosen, learn=learn, update_weight=step.weight)
        quantizer.regularizers = ()
        found = result.losses
        if not quantizer.training:
            rows, codes = compared(latents, valid, quantizer.metric == "cosine"), quantizer.codes
            found |= {term.name: term(rows, codes, result.indices.reshape(-1, 1), valid.reshape(-1)) for term in self.terms}
        quantized = result.quantized
        if not self.routed or self.variance is not None:
            raw = quantized.detach()
            if self.learning.parameter and not step.frozen:
                chosen = code_vectors(quantizer.codes, result.indices)
                raw = raw + (chosen - chosen.detach()).to(raw.dtype)
            quantized = self._directed(latents, raw, valid) if self.routed else raw
        return Found(self._optimistic(quantized), result.indices, self._commitment(found), found)

    def _commitment(self, found: dict[str, Tensor]) -> Tensor:
        """mean (x - q)^2, with a gradient to the codes where they are learned."""
        codebook = found.get("codebook")
        return found["commitment"] if codebook is None else found["commitment"] + (codebook - codebook.detach())

    def _optimistic(self, quantized: Tensor) -> Tensor:
        return quantized + self.sync_update_v * (quantized - quantized.detach()) if self.quantizer.training and self.sync_update_v else quantized

    def _directed(self, latents: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        return directional_reparam(latents, codes, self.variance).where(valid[..., None], 0.0)

    def _nearest_few(self, latents: Tensor, valid: Tensor) -> Found:
        """The nearest codes of each latent (..., 1, D), side by side (..., k, D)."""
        quantizer, step = self.quantizer, self.step
        rows, codes = self._search_operands(latents, valid)
        _, indices = nearest_codes(rows, codes, step.topk, metric=quantizer.metric)
        indices = indices.where(valid.reshape(-1, 1), -1)
        chosen = code_vectors(codes, indices)
        repeated = rows[:, None].expand(chosen.shape)
        if self.routed and self.variance is not None:
            quantized = self._directed(repeated, chosen, indices >= 0)
        elif self.routed:
            quantized, _, _ = straight_through(repeated.contiguous(), codes, indices[..., None], gradient=quantizer.gradient)
        else:
            quantized = chosen
        learned = chosen if self.learning.by_gradient else chosen.detach()
        commitment = (learned - repeated).square().mean(-1).where(indices >= 0, 0.0)
        shape = (*latents.shape[:-2], step.topk)
        found = {term.name: term(rows, codes, indices, valid.reshape(-1)) for term in self.terms}
        return Found(self._optimistic(quantized).view(*shape, -1), indices.view(shape), commitment.view(shape), found)

    def _transformed(self, latents: Tensor, valid: Tensor) -> Found:
        """The nearest of codes that a function moves for each latent (..., 1, D)."""
        quantizer, step = self.quantizer, self.step
        counted = valid.reshape(-1)
        rows, codes = self._search_operands(latents, valid)
        indices, chosen = step.transform(rows, codes)
        indices = (indices if step.chosen is None else step.chosen.reshape(-1)).where(counted, -1)
        places = torch.arange(len(indices), device=indices.device).where(counted, -1)
        quantized, commitment, codebook = straight_through(rows, chosen.to(rows.dtype), places, gradient=quantizer.gradient)
        if not self.routed or self.variance is not None:
            quantized = self._directed(rows, chosen, counted) if self.routed else chosen.where(counted[:, None], 0.0)
        found = {"commitment": commitment} | ({"codebook": codebook} if self.learning.by_gradient and not step.frozen else {})
        if quantizer.training and not step.frozen:
            quantizer.codebook.observe(rows.detach(), indices)
        shape = latents.shape
        return Found(self._optimistic(quantized).view(shape), indices.view(shape[:-1]), self._commitment(found), found)

    def _search_operands(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, D) and codes (K, D) as the search compares them, after the codebook has seen its first batch."""
        quantizer, step = self.quantizer, self.step
        rows = compared(latents, valid, quantizer.metric == "cosine")
        if quantizer.training and not step.frozen:
            quantizer.codebook.prepare(rows.detach(), valid.reshape(-1))
        codes = quantizer.codes.to(rows.dtype)
        return rows, codes.detach() if step.frozen else codes


def compared(latents: Tensor, valid: Tensor, cosine: bool) -> Tensor:
    """Latents (..., D) as the search compares them: (N, D) float32 or better, zero where not valid, (...)."""
    rows = latents.where(valid[..., None], 0.0).reshape(-1, latents.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return normalize(rows, dim=-1) if cosine else rows


def directional_reparam(latents: Tensor, codes: Tensor, variance: float = 5e-3) -> Tensor:
    """x + sg(u) |c - x| with u the direction of c - x and of normal noise of this variance; gradient to both.

    latents, codes: (..., D).

    Source: DiVeQ, https://openreview.net/forum?id=KRVnpTbx7R, figure 1.
    """
    error = codes - latents
    direction = normalize(error + variance**0.5 * torch.randn_like(error), dim=-1, eps=1e-6).detach()
    return latents + direction * error.norm(dim=-1, keepdim=True)


def opaque_transform(function: Callable[[Tensor], Tensor], cosine: bool) -> Transform:
    """Of a function that moves codes (1, K, D) for every position at once, into (1, B, *positions, K, D): this array is held."""

    def transform(latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        moved = function(codes[None]).reshape(len(latents), *codes.shape)
        moved = normalize(moved, dim=-1) if cosine else moved
        with torch.no_grad():
            indices = (latents[:, None] - moved).square().sum(-1).argmin(-1)
        return indices, moved[torch.arange(len(latents), device=latents.device), indices]

    return transform
