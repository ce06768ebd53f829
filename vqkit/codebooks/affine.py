"""Another codebook's codes, moved to where the latents are: one shift and one scale a channel for all codes together."""

import torch
from torch import Tensor

from vqkit.codebooks.codebook import Codebook
from vqkit.codebooks.ranks import sum_over_ranks
from vqkit.codebooks.statistics import Float32Statistics

# Below any spread that float32 latents near one can have; keeps constant channels from a division by zero.
_LEAST_VARIANCE = 1e-14


class AffineCodebook(Float32Statistics, Codebook):
    """codes = (inner codes - their mean) * (std of latents / std of inner codes) + mean of latents, channel by channel.

    Codes that nobody selects move along when the latents drift, so that fewer die.

    inner: yields the codes that are moved and learns, from latents moved by the inverse map.
    batch_decay: of the running mean and variance of the latents, over all ranks.
    codebook_decay: of the running mean and variance of the inner codes.

    The moments are constants to the gradient, which reaches the inner codes through the scale. They start with the first training
    batch that has a valid latent, and each step's batch counts before it is searched. For the metric "l2".

    Source: Huh et al. 2023 (arXiv 2305.08842), section on affine re-parameterisation. Running moments of the codes too, not
    only of the latents, are the reading of vector-quantize-pytorch's ``affine_param``.
    """

    cosine = False

    def __init__(self, inner: Codebook, batch_decay: float = 0.99, codebook_decay: float = 0.9):
        super().__init__(inner.size, inner.dim)
        for name, decay in (("batch_decay", batch_decay), ("codebook_decay", codebook_decay)):
            if not 0 <= decay <= 1:
                raise ValueError(f"{name}: expected 0 <= {name} <= 1, got {decay}")
        if getattr(inner, "cosine", False):
            raise ValueError("inner: expected a codebook for the metric 'l2', got one with cosine=True")
        self.inner = inner
        self.batch_decay = batch_decay
        self.codebook_decay = codebook_decay
        for name in ("latent_mean", "code_mean"):
            self.register_buffer(name, torch.zeros(inner.dim))
        for name in ("latent_variance", "code_variance"):
            self.register_buffer(name, torch.ones(inner.dim))
        self.register_buffer("started", torch.tensor(False))

    @property
    def trained_by_gradient(self) -> bool:
        return self.inner.trained_by_gradient

    @property
    def weighs_updates(self) -> bool:
        return self.inner.weighs_updates

    def forward(self) -> Tensor:
        codes = self.inner()
        moved = (codes.to(self.code_mean.dtype) - self.code_mean) * self._scale() + self.latent_mean
        # Until the first batch nothing is known.
        return moved.to(codes.dtype).where(self.started, codes)

    @torch.no_grad()
    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        # In float64, so that one all-reduce of squares is enough however far from the origin the latents are.
        rows = latents.where(valid[:, None], 0.0).double()
        sums, squares, number = sum_over_ranks(rows.sum(0), rows.square().sum(0), valid.sum().double())
        found, mean = number > 0, sums / number.clamp(min=1)
        variance = (squares / number.clamp(min=1) - mean.square()).clamp(min=0)
        code_variance, code_mean = torch.var_mean(self.inner(), 0, correction=0)
        first = found & ~self.started
        for average, now, decay in (
            (self.latent_mean, mean, self.batch_decay),
            (self.latent_variance, variance, self.batch_decay),
            (self.code_mean, code_mean, self.codebook_decay),
            (self.code_variance, code_variance, self.codebook_decay),
        ):
            now = now.to(average.dtype)
            average.copy_(now.where(first, average.lerp(now, 1 - decay).where(found, average)))
        self.started.logical_or_(found)
        self.inner.prepare(self._inverse(latents), valid)

    @torch.no_grad()
    def observe(self, latents: Tensor, indices: Tensor, weight: float | Tensor | None = None) -> None:
        rows = self._inverse(latents)
        self.inner.observe(rows, indices) if weight is None else self.inner.observe(rows, indices, weight)

    def _scale(self) -> Tensor:
        ratio = self.latent_variance.clamp(min=_LEAST_VARIANCE) / self.code_variance.clamp(min=_LEAST_VARIANCE)
        # Codes without spread, such as a single one, have none to scale.
        return torch.where(self.code_variance > _LEAST_VARIANCE, ratio.sqrt(), 1.0)

    def _inverse(self, latents: Tensor) -> Tensor:
        """Where the inner codebook sees these latents."""
        rows = ((latents - self.latent_mean) / self._scale() + self.code_mean).to(latents.dtype)
        return rows.where(self.started, latents)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, batch_decay={self.batch_decay}, codebook_decay={self.codebook_decay}"
