"""Lookup-free quantization (LFQ) and binary spherical quantization (BSQ): every number is replaced by its sign."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from torch.utils.checkpoint import checkpoint

from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.scalar import ScalarQuantizer

# Above it the table of the K average probabilities alone takes more than 64 MiB a codebook.
_MAX_EXACT_BITS = 24
# Probabilities a piece, where each needs a logarithm of its own.
_CHUNK = 2**22


class LookupFreeQuantizer(ScalarQuantizer):
    """code = s sign(x) (0 counts as negative); with ``spherical`` x / |x| in place of x, and codes of length s.

    loss = entropy_weight (E_n H(p_n) - diversity_gamma H(E_n p_n)) + commitment_weight mean (x - sg code)^2
    p_n(k) = softmax over k of 2 inv_temperature x_n . c_k: confident rows, codes used alike.

    Args:
        dim: as in ``ScalarQuantizer``, as are the other options. Default: num_codebooks * d.
        codebook_size: K = 2^d. Default: 2^dim. The first number of a code is the most significant bit of its index.
        entropy_weight, diversity_gamma, commitment_weight: see the formula.
        inv_temperature: see the formula; an attribute that may be changed at any time.
        frac_per_sample_entropy: the entropies look at this share of the rows, drawn anew at each step.
        batch_entropy: "exact", or "per_bit": the sum of the entropies of the single average bits, an upper bound, which needs O(d) in
            place of O(K) memory (the choice of BSQ).
        probability_floor: probabilities below it count as this much in logarithms, as some published code has it (1e-5). 0 is
            exact; with 1e-5 and more than 1e5 codes the second entropy has hardly a gradient.
        codebook_scale: s.
        spherical: see the formula (BSQ).
        soft_clamp: v, for x <- v tanh(x / v) at first; at least s.
        activation: a module applied to x where the gradient passes.

    Entropies are computed in training only. p_n is a product over the bits, so H(p_n) is the sum of d binary entropies; E_n p_n
    is one matrix product of the probabilities of the first and of the second half of the bits. So no N x K array is needed: memory is
    O(N sqrt(K) + K), or O(N d) with "per_bit". Only with probability_floor > 0 does H(p_n) need all of them: rows are then taken in
    chunks, and again in the backward pass. E_n is over the rows of all ranks, and its gradient is scaled for
    ``DistributedDataParallel``, which averages. Random draws come from torch's default generator.

    counts, usage and perplexity are of all K codes where K <= 2**20, else counts is None.
    Raises ValueError for arguments that do not fit.

    Source: Yu et al. 2023 (arXiv 2310.05737), section 3.1; spherical: Zhao et al. 2024 (arXiv 2406.07548), section 4.
    """

    def __init__(
        self,
        dim: int | None = None,
        codebook_size: int | None = None,
        *,
        entropy_weight: float = 0.1,
        diversity_gamma: float = 1.0,
        commitment_weight: float = 0.0,
        inv_temperature: float = 100.0,
        frac_per_sample_entropy: float = 1.0,
        batch_entropy: Literal["exact", "per_bit"] = "exact",
        probability_floor: float = 0.0,
        codebook_scale: float = 1.0,
        spherical: bool = False,
        soft_clamp: float | None = None,
        activation: nn.Module | None = None,
        **scalar,
    ):
        if codebook_size is None:
            if dim is None:
                raise ValueError("codebook_size: expected one where dim is not given, got None")
            codebook_size = 2**dim
        bits = codebook_size.bit_length() - 1
        if bits < 1 or codebook_size != 2**bits:
            raise ValueError(f"codebook_size: expected a power of 2, at least 2, got {codebook_size}")
        if not 0 < frac_per_sample_entropy <= 1:
            raise ValueError(f"frac_per_sample_entropy: expected 0 < frac_per_sample_entropy <= 1, got {frac_per_sample_entropy}")
        if batch_entropy not in ("exact", "per_bit"):
            raise ValueError(f"batch_entropy: expected 'exact' or 'per_bit', got {batch_entropy!r}")
        enumerates = batch_entropy == "exact" or probability_floor > 0
        if enumerates and bits > _MAX_EXACT_BITS and entropy_weight:
            raise ValueError(
                f"batch_entropy: expected 'per_bit', and probability_floor 0, with more than 2**{_MAX_EXACT_BITS} codes, "
                f"got {batch_entropy!r} and {probability_floor} with {codebook_size}"
            )
        if codebook_scale <= 0:
            raise ValueError(f"codebook_scale: expected more than 0, got {codebook_scale}")
        if soft_clamp is not None and soft_clamp < codebook_scale:
            raise ValueError(f"soft_clamp: expected at least codebook_scale = {codebook_scale}, got {soft_clamp}")
        super().__init__(bits, codebook_size, dim, **scalar)
        self.entropy_weight = entropy_weight
        self.diversity_gamma = diversity_gamma
        self.commitment_weight = commitment_weight
        self.inv_temperature = inv_temperature
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.batch_entropy = batch_entropy
        self.probability_floor = probability_floor
        self.codebook_scale = codebook_scale
        self.spherical = spherical
        self.soft_clamp = soft_clamp
        self.activation = nn.Identity() if activation is None else activation
        self.register_buffer("basis", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    @property
    def magnitude(self) -> float:
        """The absolute value of every number of a code: s, or s / sqrt(d) on the sphere."""
        return self.codebook_scale / math.sqrt(self.codebook_dim) if self.spherical else self.codebook_scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Replace the numbers of ``x`` by their signs.

        x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype.  mask: bool, shape of ``x`` without D; False leaves a
        row out.
        Returns ``Quantized``: quantized as ``x``, equal to ``decode(indices)``, with a straight-through gradient; indices (*x without
        D [, C]); losses "commitment" and, in training, "per_sample_entropy" and "batch_entropy".
        Raises ValueError for an ``x`` or ``mask`` that does not fit.
        """
        latents, shape, valid = self._latents(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            bits = latents.detach() > 0
            points = self._signed(bits, latents.dtype)
            elements = valid.sum() * self.num_codebooks * self.codebook_dim
            commitment = (latents - points).square().where(valid[:, None, None], 0.0).sum() / elements.clamp(min=1)
            losses, loss = {"commitment": commitment}, self.commitment_weight * commitment
            if self.training and self.entropy_weight:
                losses["per_sample_entropy"], losses["batch_entropy"] = self._entropies(latents, valid)
                gap = losses["per_sample_entropy"] - self.diversity_gamma * losses["batch_entropy"]
                loss = loss + self.entropy_weight * gap
            passed = self.activation(latents)
            # An exact zero carries the gradient: the output has the bits of decode.
            points = points + (passed - passed.detach())
        return self._quantized(points, self._index(bits), shape, valid, x.dtype, loss=loss, losses=losses)

    def _latents(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, torch.Size, Tensor]:
        latents, shape, valid = super()._latents(x, mask)
        return normalize(latents, dim=-1) * self.codebook_scale if self.spherical else latents, shape, valid

    def _clamped(self, latents: Tensor) -> Tensor:
        return latents if self.soft_clamp is None else (latents / self.soft_clamp).tanh() * self.soft_clamp

    def _entropies(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """E_n H(p_n) and H(E_n p_n), means over the codebooks, from latents (N, C, d) and valid (N,)."""
        if self.frac_per_sample_entropy < 1 and len(latents):
            rows = torch.randperm(len(latents), device=latents.device)[: max(int(len(latents) * self.frac_per_sample_entropy), 1)]
            latents, valid = latents[rows], valid[rows]
        # log p(bit) - log p(no bit)
        logits = 4 * self.inv_temperature * self.magnitude * latents
        counted = valid.to(logits.dtype)
        if self.batch_entropy == "exact" or self.probability_floor:
            high, low = (_probabilities(part) for part in logits.tensor_split([(self.codebook_dim + 1) // 2], -1))
        if self.probability_floor:
            size = max(1, _CHUNK // (self.codebook_size * self.num_codebooks))
            options = {"use_reentrant": False, "preserve_rng_state": False}
            chunks = zip(high.split(size), low.split(size))
            each = torch.cat([checkpoint(_joint_entropy, *chunk, self.probability_floor, **options) for chunk in chunks])
        else:
            each = _binary_entropy(logits).sum(-1)
        per_sample = (each.mean(-1) * counted).sum() / counted.sum().clamp(min=1)
        if self.batch_entropy == "exact":
            sums = torch.einsum("nca,ncb->cab", high * counted[:, None, None], low)
            batch = _entropy(_mean_over_ranks(sums, counted.sum()), self.probability_floor).sum((-1, -2)).mean()
        else:
            share = _mean_over_ranks(torch.einsum("ncd,n->cd", logits.sigmoid(), counted), counted.sum())
            batch = (_entropy(share, self.probability_floor) + _entropy(1 - share, self.probability_floor)).sum(-1).mean()
        return per_sample, batch

    def _index(self, bits: Tensor) -> Tensor:
        return (bits * self.basis).sum(-1)

    def _signed(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        return (bits.to(dtype) * 2 - 1) * self.magnitude

    def _select(self, latents: Tensor) -> Tensor:
        return self._index(latents > 0)

    def _points(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        return self._signed((indices[..., None] & self.basis) != 0, dtype)


def _probabilities(logits: Tensor) -> Tensor:
    """The joint probabilities of independent bits, the first the most significant: (..., h) -> (..., 2^h)."""
    joint = logits.new_ones(*logits.shape[:-1], 1)
    for bit in logits.unbind(-1):
        pair = torch.stack([(-bit).sigmoid(), bit.sigmoid()], -1)
        joint = (joint[..., :, None] * pair[..., None, :]).flatten(-2)
    return joint


def _entropy(probabilities: Tensor, floor: float) -> Tensor:
    """-p log max(p, floor), number by number."""
    # At zero the gradient of p log p is infinite.
    least = max(floor, torch.finfo(probabilities.dtype).tiny)
    return -probabilities * probabilities.clamp(min=least).log()


def _binary_entropy(logits: Tensor) -> Tensor:
    """The entropy of a bit with these log-odds, also where a probability is too small for its dtype."""
    return logits.sigmoid() * softplus(-logits) + (-logits).sigmoid() * softplus(logits)


def _joint_entropy(high: Tensor, low: Tensor, floor: float) -> Tensor:
    """The entropies (N, C) of the outer products of probabilities (N, C, A) and (N, C, B)."""
    return _entropy(high[..., :, None] * low[..., None, :], floor).sum((-1, -2))


def _mean_over_ranks(sums: Tensor, number: Tensor) -> Tensor:
    """sums / number with both summed over all ranks."""
    own = sums.detach()
    shared, number = sum_over_ranks(own, number.detach().reshape(1))
    # Every rank computes the same loss from it, so the sum of their gradients is as many times that of one; then it is averaged.
    return (shared + world()[1] * (sums - own)) / number.clamp(min=1)
