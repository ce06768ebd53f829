"""A product of quantizers: each quantizes its own part of the channels (VQCT's adjective and noun halves)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.codebooks import Codebook
from vqkit.quantizers.health import Health
from vqkit.quantizers.layout import feature_rows
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer


class ProductQuantizer(nn.Module):
    """Cuts the feature dimension into consecutive parts and quantizes each with its own codes; the losses add up.

    Args:
        quantizers: one a part, channel-last, with one head; part i has ``quantizers[i].dim`` channels.
        shared_codebook: generates the codes of all parts in one pass, (K_1 + K_2 + ..., codebook_dim), rows in the order of
            the parts, whose own codebooks are then ``SuppliedCodebook``.
        channel_first: the input is (B, D, *spatial) instead of (..., D), with D the sum of the parts' dims.

    VQCT: an adjective part with top_k=2 and a noun part with top_k=1 over one ``TransferredCodebook``.

    Source: product quantization: Jegou et al. 2011, IEEE TPAMI 33(1); the two halves: Zhang et al. 2024 (arXiv 2403.10071).
    """

    def __init__(self, quantizers: Sequence[Quantizer], shared_codebook: Codebook | None = None, channel_first: bool = False):
        super().__init__()
        if not quantizers:
            raise ValueError("quantizers: expected at least one, got none")
        for number, quantizer in enumerate(quantizers):
            if quantizer.channel_first or quantizer.heads > 1:
                raise ValueError(f"quantizers[{number}]: expected channel_first=False and heads=1; the product has its own channel_first")
        sizes = [quantizer.codebook_size for quantizer in quantizers]
        if shared_codebook is not None and shared_codebook.size != sum(sizes):
            raise ValueError(f"shared_codebook: expected {sum(sizes)} codes for parts of {sizes}, got {shared_codebook.size}")
        lengths = [quantizer.codebook_dim for quantizer in quantizers]
        if shared_codebook is not None and set(lengths) != {shared_codebook.dim}:
            raise ValueError(f"shared_codebook: expected codes as long as those of the parts, {lengths}, got dim={shared_codebook.dim}")
        self.quantizers = nn.ModuleList(quantizers)
        self.shared_codebook = shared_codebook
        self.channel_first = channel_first

    @property
    def dim(self) -> int:
        return sum(quantizer.dim for quantizer in self.quantizers)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each part."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def selections(self) -> tuple[int, ...]:
        """Number of indices that each part contributes to a position."""
        return tuple(quantizer.top_k for quantizer in self.quantizers)

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """The codes of each part as they are now, as ``Quantizer.codes``."""
        return tuple(quantizer.resolve_codes(codes) for quantizer, codes in zip(self.quantizers, self._codes()))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, learn: bool | None = None) -> Quantized:
        """Quantize every part of ``x``; arguments and result as in ``Quantizer.forward``.

        indices: (*x without D, S), the parts' indices side by side, S = sum of ``selections``. loss and losses are sums over
        the parts; ``parts`` holds each part's own result; usage and perplexity are means over the parts.
        A row with NaN or infinity in one part is left out of all.
        """
        pieces, valid = self._pieces(x, mask)
        parts = tuple(
            quantizer(piece, valid, codes, learn=learn) for quantizer, piece, codes in zip(self.quantizers, pieces, self._codes())
        )
        quantized = torch.cat([part.quantized for part in parts], -1)
        indices = torch.cat([self._columns(part.indices, q) for part, q in zip(parts, self.quantizers)], -1)
        names = dict.fromkeys(name for part in parts for name in part.losses)
        losses = {name: sum(part.losses[name] for part in parts if name in part.losses) for name in names}
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return Quantized(quantized, indices, sum(part.loss for part in parts), losses, None, parts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns, (*x without D, S), without learning."""
        pieces, valid = self._pieces(x, mask)
        found = [q.encode(piece, valid, codes) for q, piece, codes in zip(self.quantizers, pieces, self._codes())]
        return torch.cat([self._columns(indices, q) for indices, q in zip(found, self.quantizers)], -1)

    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices (..., S), in the layout of ``x``; ``dtype`` as in ``Quantizer.decode``."""
        if indices.shape[-1:] != (sum(self.selections),):
            raise ValueError(f"indices: expected a last dimension of {sum(self.selections)}, got shape {tuple(indices.shape)}")
        columns = indices.split(self.selections, -1)
        vectors = [
            q.decode(part if q.top_k > 1 else part.squeeze(-1), codes, dtype)
            for q, part, codes in zip(self.quantizers, columns, self._codes())
        ]
        joined = torch.cat(vectors, -1)
        return joined.movedim(-1, 1) if self.channel_first else joined

    def health(self) -> tuple[Health, ...]:
        """The ``Quantizer.health`` of each part."""
        return tuple(quantizer.health() for quantizer in self.quantizers)

    def _codes(self) -> Sequence[Tensor | None]:
        if self.shared_codebook is None:
            return [None] * len(self.quantizers)
        return self.shared_codebook().split(self.codebook_sizes)

    def _pieces(self, x: Tensor, mask: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """The channels of each part, and which rows count for all of them."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        return rows.split([quantizer.dim for quantizer in self.quantizers], -1), valid

    @staticmethod
    def _columns(indices: Tensor, quantizer: Quantizer) -> Tensor:
        return indices if quantizer.top_k > 1 else indices[..., None]
