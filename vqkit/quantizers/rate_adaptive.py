"""Rate-adaptive quantization (RAQ): one model, and a codebook of any size asked for."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vqkit.codebooks.rate_adaptive import RateAdaptiveCodebook
from vqkit.ops import code_counts, nearest_code, straight_through
from vqkit.ops.nearest import Metric
from vqkit.ops.straight_through import Gradient
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer


class RateAdaptiveQuantizer(Quantizer):
    """Quantizes with K source codes or, at another rate, with K' codes generated from them.

    training: K' is drawn from rates;  loss = loss(source codes) + loss(K' generated codes), each as in ``Quantizer``, the second always
    with its codebook term, whose gradient trains what generates them.

    Args:
        codebook: the source and what generates from it.
        rates: least and largest K' that training draws. None, where nothing is to be learned about other rates: then training is that
            of ``Quantizer``.
        metric, commitment_weight, gradient, channel_first: as in ``Quantizer``.

    In training both losses are over all of ``x``, and the output is that of the source codes for the first half of its first dimension
    (the larger half of an odd one) and of the generated codes for the second: what follows learns from both in one pass. The
    halves are our reading; the paper passes everything twice. K' is drawn from torch's default CPU generator: ranks that are seeded
    alike draw the same. In eval mode ``rate`` chooses; None, or K, is the source.

    Raises ValueError for arguments that do not fit. `torch.compile` takes the eval mode whole, and what generates codes where it can.

    Source: Seo and Kang 2024 (arXiv 2405.14222), section 3.
    """

    def __init__(
        self,
        codebook: RateAdaptiveCodebook,
        rates: tuple[int, int] | None,
        *,
        metric: Metric = "l2",
        commitment_weight: float = 0.25,
        gradient: Gradient = "straight_through",
        channel_first: bool = False,
    ):
        if not isinstance(codebook, RateAdaptiveCodebook):
            raise TypeError(f"codebook: expected a RateAdaptiveCodebook, got {type(codebook).__name__}")
        options = {"metric": metric, "commitment_weight": commitment_weight, "gradient": gradient, "channel_first": channel_first}
        super().__init__(codebook.dim, codebook.size, codebook=codebook, **options)
        if rates is not None and (len(rates) != 2 or not 1 <= rates[0] <= rates[1]):
            raise ValueError(f"rates: expected two numbers, 1 <= least <= largest, got {tuple(rates)}")
        self.rates = None if rates is None else tuple(rates)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, rate: int | None = None, learn: bool | None = None
    ) -> Quantized:
        """Quantize ``x``; arguments and result as in ``Quantizer.forward``, and

        rate: in eval mode, or without ``rates``, the number of codes to quantize with; in training the K' of this step, in the place of
            a drawn one.

        In training with ``rates``: counts are those of the source codes over all of ``x``; losses have "adapted_commitment" and
        "adapted_codebook" too; the indices of the second half are those of the generated codes.
        Raises ValueError also for a training batch without a first dimension to halve.
        """
        self._check_rate(rate)
        if not self.training or self.rates is None:
            if self._is_source(rate):
                return super().forward(x, mask, learn=learn)
            return self._adapted(x, mask, self._generated(rate), learn)
        if x.ndim < 2:
            raise ValueError(f"x: expected at least two dimensions in training, got {tuple(x.shape)}")
        # Before the source learns: all of a step sees the same codes.
        codes = self._generated(int(torch.randint(self.rates[0], self.rates[1] + 1, ())) if rate is None else rate)
        source, adapted = super().forward(x, mask, learn=learn), self._adapted(x, mask, codes, learn)
        first = (len(x) + 1) // 2
        quantized, indices = (torch.cat([a[:first], b[first:]]) for a, b in zip(source[:2], adapted[:2]))
        losses = source.losses | {f"adapted_{name}": loss for name, loss in adapted.losses.items()}
        return Quantized(quantized, indices, source.loss + adapted.loss, losses, source.counts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, *, rate: int | None = None) -> Tensor:
        """The indices that ``forward`` returns in eval mode."""
        self._check_rate(rate)
        if self._is_source(rate):
            return super().encode(x, mask)
        return self._adapted(x, mask, self._generated(rate), learn=False).indices

    @torch.no_grad()
    def decode(self, indices: Tensor, *, rate: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, as ``Quantizer.decode``, of the codes of this rate."""
        self._check_rate(rate)
        if self._is_source(rate):
            return super().decode(indices, dtype=dtype)
        dtype = dtype or next((p.dtype for p in self.parameters()), self._dtype_marker.dtype)
        codes = self.codes_at(rate).to(torch.promote_types(dtype, torch.float32))
        columns = indices.reshape(-1)
        vectors, _, _ = straight_through(codes.new_zeros(len(columns), self.codebook_dim), codes, columns)
        return self._restored(vectors, indices.shape, columns >= 0, dtype)

    def codes_at(self, rate: int | None) -> Tensor:
        """The codes of this rate as they are searched, (rate, D); of unit length under "cosine"."""
        return self.codes if self._is_source(rate) else self._generated(rate)

    def _generated(self, rate: int) -> Tensor:
        """Generated codes, also where as many as the source has are asked for."""
        codes = self.codebook.adapted(rate)
        return normalize(codes, dim=-1) if self.metric == "cosine" else codes

    def _adapted(self, x: Tensor, mask: Tensor | None, codes: Tensor, learn: bool | None) -> Quantized:
        """The result of these codes alone."""
        latents, shape, valid = self._latents(x, mask)
        codes = codes.to(latents.dtype)
        codes = codes.detach() if learn is False else codes
        indices = nearest_code(latents, codes, metric=self.metric).where(valid, -1)
        quantized, commitment, codebook = straight_through(latents, codes, indices, gradient=self.gradient)
        losses = {"commitment": commitment, "codebook": codebook}
        loss = self.commitment_weight * commitment + codebook
        output = self._restored(quantized, shape, valid, x.dtype)
        return Quantized(output, indices.view(shape), loss, losses, code_counts(indices, len(codes)))

    def _is_source(self, rate: int | None) -> bool:
        return rate is None or rate == self.codebook_size

    @staticmethod
    def _check_rate(rate: int | None) -> None:
        if rate is not None and rate < 1:
            raise ValueError(f"rate: expected at least 1, got {rate}")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rates={self.rates}"
