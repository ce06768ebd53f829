"""The quantizer of every recipe in plain PyTorch, over the same weights: the same model, quantised as people write it."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from benchmarks.naive import NaiveProduct, NaiveQuantizer, NaiveTransfer
from vqkit.codebooks import AnchoredCodebook, Codebook, EMACodebook, LearnedCodebook
from vqkit.codebooks.generated import GeneratedCodebook
from vqkit.nn import GraphTransfer
from vqkit.quantizers import AdaptiveQuantizer, ProductQuantizer, Quantized, Quantizer, RateAdaptiveQuantizer

_KINDS = {EMACodebook: "ema", LearnedCodebook: "learned", AnchoredCodebook: "anchored"}


def naive_quantizer(quantizer: nn.Module, dense: bool = False) -> nn.Module:
    """A naive module that computes what this one does, with its parameters and a copy of its codes.

    dense: multiply a graph's adjacency as a dense matrix, not by gather + index_add.
    Raises TypeError for a quantizer that no recipe has.
    """
    if isinstance(quantizer, AdaptiveQuantizer):
        return NaiveAdaptive(quantizer)
    if isinstance(quantizer, RateAdaptiveQuantizer):
        return NaiveRateAdaptive(quantizer)
    if not isinstance(quantizer, Quantizer | ProductQuantizer):
        raise TypeError(f"quantizer: expected that of a recipe, got {type(quantizer).__name__}")
    parts = list(quantizer.quantizers) if isinstance(quantizer, ProductQuantizer) else [quantizer]
    shared = getattr(quantizer, "shared_codebook", None)
    return NaiveProduct([_naive(part) for part in parts], quantizer.codebook_sizes, _generator(shared, parts, dense))


class Together(nn.Module):
    """The codes of these codebooks, one below the other; a linear map of constants is as plain in vqkit as elsewhere."""

    def __init__(self, codebooks: list[Codebook]):
        super().__init__()
        self.codebooks = nn.ModuleList(codebooks)

    def forward(self) -> Tensor:
        return torch.cat([codebook() for codebook in self.codebooks])


class NaiveAdaptive(nn.Module):
    """ADQ: every picture through all candidates, the outputs weighted by a hard Gumbel-softmax."""

    def __init__(self, quantizer: AdaptiveQuantizer):
        super().__init__()
        self.query, self.value, self.temperature = quantizer.query, quantizer.value, quantizer.temperature
        self.project_in, self.project_out = (
            nn.ModuleList(getattr(candidate, name) for candidate in quantizer.candidates) for name in ("project_in", "project_out")
        )
        self.candidates = nn.ModuleList(_naive(candidate) for candidate in quantizer.candidates)

    def forward(self, x: Tensor) -> Quantized:
        rows = x.movedim(1, -1).flatten(1, -2)  # (B, L, D)
        attention = (self.query(rows) / rows.shape[-1] ** 0.5).float().softmax(1)
        weights = gumbel_softmax((attention * self.value(rows)).sum(1), self.temperature, hard=True)  # (B, candidates)
        mixture, commitment, counts = 0.0, 0.0, []
        for candidate, before, after, weight in zip(self.candidates, self.project_in, self.project_out, weights.unbind(-1)):
            latents = before(rows).flatten(0, 1).float()
            mine = weight.detach().repeat_interleave(rows.shape[1])
            quantized, chosen, distances = candidate.select(latents)
            chosen = chosen * mine[:, None]
            commitment = commitment + ((latents - quantized.detach()).square().mean(-1) * mine).mean()
            if self.training:
                candidate.learn(latents.detach(), chosen, distances)
            output = after((latents + (quantized - latents).detach()).to(rows.dtype)).view_as(rows)
            mixture = mixture + weight[:, None, None] * output
            counts.append(chosen.sum(0))
        output = mixture.to(x.dtype).movedim(-1, 1).reshape(x.shape)
        return Quantized(output, None, 0.25 * commitment, {"commitment": commitment}, torch.cat(counts))


class NaiveRateAdaptive(nn.Module):
    """RAQ: everything with the source codes and with generated ones, half of the output from each."""

    def __init__(self, quantizer: RateAdaptiveQuantizer):
        super().__init__()
        self.generate, self.rates = quantizer.codebook.generate, quantizer.rates
        self.source = _copied(quantizer.codebook.source, quantizer)
        self.adapted = NaiveQuantizer(quantizer.dim, 0, "supplied", cosine=quantizer.metric == "cosine")

    def forward(self, x: Tensor, rate: int | None = None) -> Quantized:
        count = int(torch.randint(self.rates[0], self.rates[1] + 1, ())) if rate is None else rate
        with torch.autocast(x.device.type, enabled=False):
            # A copy: the source moves its codes before the backward pass.
            codes = self.generate(self.source.codes.clone(), count)
        source, adapted = self.source(x), self.adapted(x, codes)
        first = (len(x) + 1) // 2
        losses = source.losses | {f"adapted_{name}": loss for name, loss in adapted.losses.items()}
        quantized = torch.cat([source.quantized[:first], adapted.quantized[first:]])
        return Quantized(quantized, None, source.loss + adapted.loss, losses, source.counts)


def _naive(quantizer: Quantizer) -> NaiveQuantizer:
    return _copied(quantizer.codebook, quantizer)


def _copied(codebook: Codebook, quantizer: Quantizer) -> NaiveQuantizer:
    kind = _KINDS.get(type(codebook), "supplied")
    options = {"top_k": quantizer.top_k, "decay": getattr(codebook, "decay", 0.0), "cosine": quantizer.metric == "cosine"}
    naive = NaiveQuantizer(codebook.dim, codebook.size, kind, **options)
    known = codebook.state_dict()
    naive.load_state_dict({name: known[name] for name in naive.state_dict()})
    return naive


def _generator(shared: Codebook | None, parts: list[Quantizer], dense: bool) -> nn.Module | None:
    """What makes the codes of all parts, copied so that two models may be trained side by side; None where they are stored."""
    if shared is None:
        generated = [part.codebook for part in parts if isinstance(part.codebook, GeneratedCodebook)]
        return Together(copy.deepcopy(generated)) if generated else None
    if isinstance(shared.network, GraphTransfer):
        return NaiveTransfer(shared, dense)
    return Together([shared])
