"""Grouped residual quantization: the channels are cut into groups, and each has residual stages of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.quantizers.health import Health
from vqkit.quantizers.layout import feature_rows
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.residual import ResidualQuantizer


class GroupedResidualQuantizer(nn.Module):
    """Cuts the feature dimension into consecutive groups and quantizes each with its own residual stages; the losses add up.

    Args:
        quantizers: one ``ResidualQuantizer`` a group, channel-last, with as many stages each; group i has ``quantizers[i].dim`` channels.
        dim, groups: in the place of ``quantizers``: ``groups`` times ``ResidualQuantizer(dim=dim // groups, **residual)``.
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    Under quantize dropout all groups use as many stages, drawn once, by the first group.
    Raises ValueError for arguments that do not fit.

    Source: Yang et al. 2023 (arXiv 2305.02765), section 3.2.
    """

    def __init__(
        self,
        quantizers: Sequence[ResidualQuantizer] | None = None,
        *,
        dim: int | None = None,
        groups: int | None = None,
        channel_first: bool = False,
        **residual,
    ):
        super().__init__()
        if quantizers is None:
            if dim is None or groups is None or groups < 1 or dim % groups:
                raise ValueError(f"groups: expected a divisor of dim where no quantizers are given, got {groups} with dim={dim}")
            quantizers = [ResidualQuantizer(dim=dim // groups, **residual) for _ in range(groups)]
        else:
            for name, value in {"dim": dim, "groups": groups, **residual}.items():
                if value is not None:
                    raise ValueError(f"{name}: expected none beside quantizers, which have their own, got {value!r}")
        if not quantizers:
            raise ValueError("quantizers: expected at least one, got none")
        for place, quantizer in enumerate(quantizers):
            if quantizer.channel_first:
                raise ValueError(f"quantizers[{place}]: expected channel_first=False; the groups have their own channel_first")
            if len(quantizer.quantizers) != len(quantizers[0].quantizers):
                raise ValueError(
                    f"quantizers[{place}]: expected {len(quantizers[0].quantizers)} stages as the first, got {len(quantizer.quantizers)}"
                )
        self.quantizers = nn.ModuleList(quantizers)
        self.channel_first = channel_first

    @property
    def dim(self) -> int:
        return sum(quantizer.dim for quantizer in self.quantizers)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each stage, group after group."""
        return tuple(size for quantizer in self.quantizers for size in quantizer.codebook_sizes)

    @property
    def selections(self) -> tuple[int, ...]:
        """Number of indices that each stage of each group contributes to a position: one."""
        return tuple(count for quantizer in self.quantizers for count in quantizer.selections)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, learn: bool | None = None, stages: int | None = None) -> Quantized:
        """Quantize every group of ``x``; arguments and result as in ``ResidualQuantizer.forward``.

        indices: (*x without D, G * Q), the stages of the first group, then those of the second. loss and losses are sums over the
        groups; ``parts`` holds each group's own result. A row with NaN or infinity in any group is left out of all.
        """
        pieces, mask = self._pieces(x, mask)
        if stages is None and self.training:
            stages = self.draw_stages()
        parts = tuple(quantizer(piece, mask, learn=learn, stages=stages) for quantizer, piece in zip(self.quantizers, pieces))
        names = dict.fromkeys(name for part in parts for name in part.losses)
        losses = {name: sum(part.losses[name] for part in parts if name in part.losses) for name in names}
        indices = torch.cat([part.indices for part in parts], -1)
        return Quantized(self._joined([part.quantized for part in parts]), indices, sum(part.loss for part in parts), losses, None, parts)

    def stage_losses(self, result: Quantized) -> Tensor:
        """The loss of each stage in a result of ``forward``, (G, Q); 0 for a stage not used."""
        return torch.stack([quantizer.stage_losses(part) for quantizer, part in zip(self.quantizers, result.parts)])

    def draw_stages(self) -> int | None:
        """How many stages the next training step uses, None for all; see ``ResidualQuantizer.draw_stages``."""
        first = self.quantizers[0]
        return first.draw_stages() if first.quantize_dropout else None

    def health(self) -> tuple[tuple[Health | None, ...], ...]:
        """The ``ResidualQuantizer.health`` of each group."""
        return tuple(quantizer.health() for quantizer in self.quantizers)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, *, stages: int | None = None) -> Tensor:
        """The indices that ``forward`` returns in eval mode, (*x without D, G * Q)."""
        pieces, mask = self._pieces(x, mask)
        return torch.cat([quantizer.encode(piece, mask, stages=stages) for quantizer, piece in zip(self.quantizers, pieces)], -1)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, in the layout of ``x``.

        indices: (..., G * n), for each group its first n stages; else as in ``ResidualQuantizer.decode``.
        """
        groups = len(self.quantizers)
        if indices.ndim < 1 or indices.shape[-1] % groups or not indices.shape[-1]:
            raise ValueError(f"indices: expected a last dimension that {groups} groups divide, got shape {tuple(indices.shape)}")
        return self._joined([q.decode(part, dtype) for q, part in zip(self.quantizers, indices.chunk(groups, -1))])

    def _pieces(self, x: Tensor, mask: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        return rows.split([quantizer.dim for quantizer in self.quantizers], -1), valid

    def _joined(self, vectors: list[Tensor]) -> Tensor:
        joined = torch.cat(vectors, -1)
        return joined.movedim(-1, 1) if self.channel_first else joined
