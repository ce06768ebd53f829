"""Gumbel quantization (discrete VAE): a code is drawn from predicted probabilities, and the gradient passes through a softmax."""

import math

import torch
from torch import Tensor, nn

from vqkit.ops import code_counts
from vqkit.ops.statistics import check_range
from vqkit.quantizers.layout import feature_rows, project_rows
from vqkit.quantizers.quantized import Quantized


class GumbelQuantizer(nn.Module):
    """A linear layer scores all codes; in training one is drawn with probability softmax(logits).

    y = softmax((logits + Gumbel noise) / temperature);  quantized = code of the largest y, with the gradient of y codes
    loss = kl_weight KL(softmax(logits) || uniform) = kl_weight mean over rows of sum_k p_k log(p_k K)

    Args:
        dim: D, size of the feature dimension of the input.
        codebook_size: K.
        codebook_dim: length of a code, and size of the feature dimension of the output. Default: dim.
        temperature: see the formula; an attribute that may be changed at any time, as annealing does.
        hard: False: in training quantized = y codes, a mixture. In eval mode one code is taken in any case.
        kl_weight: see the formula.
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    In eval mode there is no noise: the code of the largest logit is taken. codes (K, codebook_dim) is an ``nn.Parameter`` from a
    standard normal distribution; it gets the gradient of the output. The scores are what the method is made of, so that it needs N x K
    memory. They are taken in float32 or better, also under autocast. Random draws come from torch's default generator.

    A masked row, or one that holds NaN or infinity, has output 0 and index -1 and takes no part in losses, counts or gradients.
    Raises ValueError for arguments that do not fit.

    Source: Jang et al. 2016 (arXiv 1611.01144), sections 2.1 and 2.2; as a quantizer: Ramesh et al. 2021 (arXiv 2102.12092), section 2.1.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        temperature: float = 1.0,
        hard: bool = True,
        kl_weight: float = 5e-4,
        channel_first: bool = False,
    ):
        super().__init__()
        for name, value in (("dim", dim), ("codebook_size", codebook_size), ("codebook_dim", codebook_dim)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.temperature = temperature
        self.hard = hard
        self.kl_weight = kl_weight
        self.channel_first = channel_first
        self.project_in = nn.Linear(dim, codebook_size)
        self.codes = nn.Parameter(torch.randn(codebook_size, self.codebook_dim))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)

    @property
    def selections(self) -> tuple[int, ...]:
        return (1,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``x``.

        x: (..., D), or (B, D, *spatial) with channel_first.  mask: bool, shape of ``x`` without D; False leaves a row out.
        Returns ``Quantized``: quantized as ``x`` but with codebook_dim features, equal to ``decode(indices)`` unless a mixture;
        indices (*x without D); losses "kl".
        Raises ValueError for an ``x`` or ``mask`` that does not fit.
        """
        logits, shape, valid = self._logits(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            codes = self.codes.to(logits.dtype)
            scores = logits - torch.empty_like(logits).exponential_().log() if self.training else logits
            indices = scores.argmax(-1).where(valid, -1)
            soft = (scores / self.temperature).softmax(-1)
            if self.hard or not self.training:
                mixture = soft @ codes.detach()
                # An exact zero carries the gradient of the softmax: the output has the bits of decode.
                quantized = codes[indices.clamp(min=0)] + (mixture - mixture.detach())
            else:
                quantized = soft @ codes
            share = logits.log_softmax(-1)
            divergence = (share.exp() * (share + math.log(self.codebook_size))).sum(-1)
            kl = divergence.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
        output = self._restored(quantized, shape, valid, x.dtype)
        counts = code_counts(indices, self.codebook_size)
        return Quantized(output, indices.view(shape), self.kl_weight * kl, {"kl": kl}, counts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The indices of the largest logits, which ``forward`` returns in eval mode."""
        logits, shape, valid = self._logits(x, mask)
        return logits.argmax(-1).where(valid, -1).view(shape)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The codes of these indices, in the layout of ``x`` with codebook_dim features; -1 gives a zero vector. No gradient.

        dtype: that of ``x``. Default: the dtype of the module.
        Raises IndexError for an index that does not fit (on the CPU).
        """
        check_range(indices, self.codebook_size, "codebook_size")
        dtype = self.codes.dtype if dtype is None else dtype
        columns = indices.reshape(-1)
        codes = self.codes.to(torch.promote_types(dtype, torch.float32))
        return self._restored(codes[columns.clamp(min=0)], indices.shape, columns >= 0, dtype)

    def _logits(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, torch.Size, Tensor]:
        """Logits (N, K), the shape of x without D, and which rows count, (N,) bool."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        logits, valid = project_rows(self.project_in, rows, valid)
        logits = logits.reshape(-1, self.codebook_size).to(torch.promote_types(logits.dtype, torch.float32))
        return logits, rows.shape[:-1], valid.reshape(-1)

    def _restored(self, vectors: Tensor, shape: torch.Size, valid: Tensor, dtype: torch.dtype) -> Tensor:
        output = vectors.where(valid[:, None], 0.0).to(dtype).view(*shape, self.codebook_dim)
        return output.movedim(-1, 1) if self.channel_first else output

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, codebook_dim={self.codebook_dim}, hard={self.hard}, "
            f"kl_weight={self.kl_weight}, channel_first={self.channel_first}"
        )
