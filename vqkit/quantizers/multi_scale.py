"""Multi-scale residual quantization (VAR): coarse token maps first, each finer map quantizes what the coarser ones have left over."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, embedding, interpolate

from vqkit.codebooks import CODEBOOKS, Codebook
from vqkit.codebooks.statistics import Float32Statistics
from vqkit.ops import code_counts, nearest_code
from vqkit.ops.nearest import Metric
from vqkit.ops.statistics import check_range
from vqkit.quantizers.health import Health, HealthMonitor
from vqkit.quantizers.layout import feature_rows
from vqkit.quantizers.quantized import Quantized


class ScaleBlend(nn.Conv2d):
    """phi(h) = (1 - ratio) h + ratio conv3x3(h): repairs what upsampling a token map has blurred."""

    def __init__(self, dim: int, ratio: float):
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, maps: Tensor) -> Tensor:
        # In the dtype of the maps, which is float32 or better also where the weights are not.
        return maps * (1 - self.ratio) + conv2d(maps, self.weight.to(maps.dtype), self.bias.to(maps.dtype), padding=1) * self.ratio


class BicubicResize(Float32Statistics):
    """(..., h, w) -> (..., H, W), bicubic, as two products of matrices: they have a deterministic gradient on every device."""

    def __init__(self, size: tuple[int, int], full: tuple[int, int]):
        super().__init__()
        for name, small, large in zip(("rows", "columns"), size, full):
            steps = interpolate(torch.eye(small)[None, :, :, None], size=(large, 1), mode="bicubic")
            self.register_buffer(name, steps[0, :, :, 0].T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return self.rows.to(maps.dtype) @ maps @ self.columns.to(maps.dtype).T


class MultiScaleQuantizer(nn.Module):
    """Token maps of growing size over one codebook: sum_s phi_s(bicubic(codes[indices_s])), indices_s = nearest(area(x - sum so far)).

    loss = mean over the scales s of commitment_weight * mean (x - sg f_s)^2 + mean (sg x - f_s)^2, with f_s the sum up to scale s.

    Args:
        dim: D, size of the feature dimension of the input and length of a code.
        codebook_size: K.
        patch_nums: S token maps from coarse to fine: p for p x p tokens, or (height, width). The last is the size of the input and is
            not resized.
        metric: of the search; "cosine" compares directions, and the codes keep their lengths.
        codebook: "learned", another name in ``vqkit.codebooks.CODEBOOKS``, or a ``Codebook`` of matching size. It starts (k-means) from
            the input at full size and observes the residuals of all scales, once a step.
        commitment_weight: see the formula.
        phi_ratio: share of the convolution in phi, 0..1. 0: phi is the identity, without weights.
        phi_count: how many phi there are: 1, one for all scales; 0, one for each; n, scale s takes the one whose place in an even grid
            over 0..1 is nearest to s / (S - 1).
        channel_first: the input is (B, D, H, W) instead of (B, H, W, D).

    The gradient of quantized to x is the identity. That of the second term reaches codes trained by gradient, and phi, through every
    scale up to s. Sums and residuals are float32 or better, also under autocast. Tokens are searched in O(N + K) memory.
    Raises ValueError or TypeError for arguments that do not fit.

    Source: Tian et al. 2024 (arXiv 2404.02905), section 3.2, algorithms 1 and 2; the places of the phi and the loss are those of its
    published code.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        patch_nums: Sequence[int | tuple[int, int]] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        *,
        metric: Metric = "l2",
        codebook: str | Codebook = "learned",
        commitment_weight: float = 0.25,
        phi_ratio: float = 0.5,
        phi_count: int = 4,
        channel_first: bool = False,
    ):
        super().__init__()
        sizes = tuple((size, size) if isinstance(size, int) else tuple(size) for size in patch_nums)
        if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
            raise ValueError(f"patch_nums: expected at least one p or (height, width), each at least 1, got {patch_nums}")
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric: expected 'l2' or 'cosine', got {metric!r}")
        if not 0 <= phi_ratio <= 1:
            raise ValueError(f"phi_ratio: expected 0 <= phi_ratio <= 1, got {phi_ratio}")
        if phi_count < 0:
            raise ValueError(f"phi_count: expected at least 0, got {phi_count}")
        if isinstance(codebook, str):
            if codebook not in CODEBOOKS:
                raise ValueError(f"codebook: expected one of {', '.join(map(repr, CODEBOOKS))} or a Codebook, got {codebook!r}")
            codebook = CODEBOOKS[codebook](codebook_size, dim)
        elif not isinstance(codebook, Codebook):
            raise TypeError(f"codebook: expected a name or a vqkit.codebooks.Codebook, got {type(codebook).__name__}")
        if (codebook.size, codebook.dim) != (codebook_size, dim):
            raise ValueError(f"codebook: expected {codebook_size} codes of length {dim}, got {codebook.size} of length {codebook.dim}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.patch_nums = sizes
        self.metric = metric
        self.commitment_weight = commitment_weight
        self.channel_first = channel_first
        self.codebook = codebook
        self.resize = nn.ModuleList(nn.Identity() if size == sizes[-1] else BicubicResize(size, sizes[-1]) for size in sizes)
        self.phi = nn.ModuleList(ScaleBlend(dim, phi_ratio) for _ in range(phi_count or len(sizes))) if phi_ratio else None
        self._phi_of_scale = _places(len(sizes), phi_count or len(sizes))
        self.monitor = HealthMonitor(codebook_size)
        # Follows ``.to(dtype)`` where nothing else does.
        self.register_buffer("_dtype_marker", torch.empty(0), persistent=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,): number of codes, the same for all scales."""
        return (self.codebook_size,)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(height * width for height, width in self.patch_nums)

    @property
    def selections(self) -> tuple[int, ...]:
        """(L,): number of indices, here of a whole input: L = the sum of ``tokens``."""
        return (sum(self.tokens),)

    @property
    def codes(self) -> Tensor:
        """The codes as they are now, (K, D)."""
        return self.codebook()

    def forward(self, x: Tensor, mask: Tensor | None = None, *, learn: bool | None = None) -> Quantized:
        """Quantize ``x`` and, in training mode, let the codebook learn from its residuals.

        Args:
            x: (B, H, W, D), or (B, D, H, W) with channel_first; H, W = ``patch_nums[-1]``; any floating dtype.
            mask: bool, (B, H, W). A token map describes a whole picture, so a picture with a place that is False, or that holds NaN or
                infinity, is left out: output 0, indices -1, no part in losses, statistics, counts or gradients.
            learn: as in ``Quantizer.forward``; False holds phi as well.

        Returns:
            ``Quantized``: quantized as ``x``, in eval mode equal to ``decode(indices)``; indices (B, L), scale after scale, each row by
            row; counts over all scales.

        Raises ValueError for an ``x`` or ``mask`` that does not fit; nothing has changed then.
        """
        maps, valid = self._maps(x, mask)
        target, learning = maps.detach(), self.training if learn is None else learn
        if learning:
            rows = target.movedim(1, -1).reshape(-1, self.dim)
            self.codebook.prepare(rows, valid.repeat_interleave(len(rows) // max(len(valid), 1)))
        codes = self.codes.to(maps.dtype)
        elements = (valid.sum() * maps[:1].numel()).clamp(min=1)
        commitment = codebook_loss = maps.new_zeros(())
        found, latents, total = [], [], torch.zeros_like(maps)
        for scale in range(len(self.patch_nums)):
            latents.append(self._tokens(target - total.detach(), scale))
            found.append(self._search(latents[-1], codes, valid))
            total = total + self._contribution(found[-1], codes, scale)
            commitment = commitment + self._error(maps, total.detach(), valid) / elements
            codebook_loss = codebook_loss + self._error(target, total, valid) / elements
        codebook_loss = codebook_loss.detach() if learn is False else codebook_loss
        losses = {"commitment": commitment / len(found), "codebook": codebook_loss / len(found)}
        indices = torch.cat(found, 1)
        counts = code_counts(indices, self.codebook_size)
        rows, chosen = torch.cat(latents, 1).reshape(-1, self.dim), indices.reshape(-1)
        if self.training:
            self.monitor.observe(rows, codes.detach()[chosen.clamp(min=0)].where((chosen >= 0)[:, None], 0.0), counts, chosen >= 0)
        if learning:
            self.codebook.observe(rows, chosen)
        # The sum and an exact zero that carries the gradient: the output has the bits of decode.
        output = total.detach().where(valid[:, None, None, None], 0.0) + (maps - maps.detach())
        loss = self.commitment_weight * losses["commitment"] + losses["codebook"]
        return Quantized(self._restored(output, x.dtype), indices, loss, losses, counts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns, (B, L), without learning."""
        maps, valid = self._maps(x, mask)
        codes, total, found = self.codes.to(maps.dtype), torch.zeros_like(maps), []
        for scale in range(len(self.patch_nums)):
            found.append(self._search(self._tokens(maps - total, scale), codes, valid))
            total = total + self._contribution(found[-1], codes, scale)
        return torch.cat(found, 1)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The sum over the scales of these indices, in the layout of ``x``. No gradient.

        indices: (B, L), or the first n scales of it, (B, sum of the first n ``tokens``); a picture whose first index is -1 gives zeros.
        dtype: that of ``x``. Default: the dtype of the module.
        Raises ValueError for a shape or IndexError for an index that does not fit (on the CPU).
        """
        *_, total = self._sums(indices, dtype)
        return self._restored(total, self._dtype(dtype))

    @torch.no_grad()
    def reconstructions(self, indices: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """What ``decode`` returns after the first scale, after two, and so on; the arguments are those of ``decode``."""
        return [self._restored(total, self._dtype(dtype)) for total in self._sums(indices, dtype)]

    @torch.no_grad()
    def next_inputs(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What a next-scale model is given where it predicts scale 2, 3, ...: the sum so far, resized to the scale that comes next.

        indices: (B, L), or fewer scales; the last scale is not needed. The arguments are those of ``decode``.
        Returns (B, sum of the tokens of the scales 2.., D): position i is there to predict index tokens[0] + i of the picture.
        """
        sums = self._sums(indices, dtype)
        parts = [self._tokens(total, scale + 1) for scale, total in enumerate(sums) if scale + 1 < len(self.patch_nums)]
        empty = torch.zeros(len(indices), 0, self.dim, device=indices.device)
        return torch.cat([*parts, empty] if not parts else parts, 1).to(self._dtype(dtype))

    @torch.no_grad()
    def advance(self, total: Tensor | None, indices: Tensor, scale: int) -> tuple[Tensor, Tensor | None]:
        """One step of generation: add the token map of a scale to the sum.

        total: (B, D, H, W) float32, what the step before returned; None at the first scale.  indices: (B, tokens[scale]).
        scale: 0..S - 1.
        Returns the sum and, for the scale that follows, the model's input (B, tokens[scale + 1], D); None after the last.
        """
        if not 0 <= scale < len(self.patch_nums) or indices.shape[1:] != (self.tokens[scale],):
            expected = f"(B, {self.tokens[scale]})" if 0 <= scale < len(self.patch_nums) else f"a scale in 0..{len(self.patch_nums) - 1}"
            raise ValueError(f"indices: expected {expected} at scale {scale}, got shape {tuple(indices.shape)}")
        codes = self.codes.float()
        added = self._contribution(indices, codes, scale)
        total = added if total is None else total + added
        return total, self._tokens(total, scale + 1) if scale + 1 < len(self.patch_nums) else None

    def expand(self, maps: Tensor, scale: int) -> Tensor:
        """What codes of a scale, (B, D, height, width), add to the sum: resized and blended by its phi, (B, D, H, W). With gradient."""
        with torch.autocast(maps.device.type, enabled=False):
            maps = self.resize[scale](maps)
            return maps if self.phi is None else self.phi[self._phi_of_scale[scale]](maps)

    def split(self, indices: Tensor) -> list[Tensor]:
        """(B, L) -> the token map of each scale, (B, height, width)."""
        parts = indices.split(self.tokens, 1)
        return [part.reshape(len(part), *size) for part, size in zip(parts, self.patch_nums)]

    def health(self) -> Health:
        """As ``Quantizer.health``, over all scales."""
        return self.monitor.read()

    def _maps(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, D, H, W) in float32 or better, zero where a picture is left out, and which pictures are not, (B,) bool."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        if rows.ndim != 4 or tuple(rows.shape[1:3]) != self.patch_nums[-1]:
            size = (self.dim, *self.patch_nums[-1]) if self.channel_first else (*self.patch_nums[-1], self.dim)
            raise ValueError(f"x: expected (B, {', '.join(map(str, size))}), the size of the last scale, got {tuple(x.shape)}")
        valid = valid.flatten(1).all(1)
        maps = rows.where(valid[:, None, None, None], 0.0).movedim(-1, 1)
        return maps.to(torch.promote_types(x.dtype, torch.float32)).contiguous(), valid

    def _tokens(self, maps: Tensor, scale: int) -> Tensor:
        """Maps resized to a scale: (B, D, H, W) -> (B, tokens, D)."""
        if tuple(maps.shape[2:]) != self.patch_nums[scale]:
            maps = interpolate(maps, size=self.patch_nums[scale], mode="area")
        return maps.flatten(2).transpose(1, 2)

    def _search(self, tokens: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        return nearest_code(tokens, codes, metric=self.metric).where(valid[:, None], -1)

    def _contribution(self, indices: Tensor, codes: Tensor, scale: int) -> Tensor:
        """What a scale adds to the sum: (B, tokens) -> (B, D, H, W); a picture whose indices are -1 gets what must not be used."""
        tokens = embedding(indices.clamp(min=0), codes)
        return self.expand(tokens.transpose(1, 2).reshape(len(indices), self.dim, *self.patch_nums[scale]), scale)

    def _error(self, maps: Tensor, total: Tensor, valid: Tensor) -> Tensor:
        return (maps - total).where(valid[:, None, None, None], 0.0).square().sum()

    def _sums(self, indices: Tensor, dtype: torch.dtype | None) -> Iterator[Tensor]:
        """The sum after each of the scales that ``indices`` hold, (B, D, H, W)."""
        ends = [sum(self.tokens[: scale + 1]) for scale in range(len(self.tokens))]
        if indices.ndim != 2 or indices.shape[1] not in ends:
            raise ValueError(f"indices: expected (B, n) with n among {ends}, the ends of the scales, got shape {tuple(indices.shape)}")
        check_range(indices, self.codebook_size, "codebook_size")
        codes = self.codes.to(torch.promote_types(self._dtype(dtype), torch.float32))
        kept = (indices[:, 0] >= 0)[:, None, None, None]
        total = codes.new_zeros(len(indices), self.dim, *self.patch_nums[-1])
        for scale, part in enumerate(indices.split(self.tokens[: ends.index(indices.shape[1]) + 1], 1)):
            total = total + self._contribution(part, codes, scale)
            yield total.where(kept, 0.0)

    def _restored(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        return (maps if self.channel_first else maps.movedim(1, -1)).to(dtype)

    def _dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        return dtype or next((p.dtype for p in self.parameters()), self._dtype_marker.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, patch_nums={self.patch_nums}, metric={self.metric!r}"


def _places(scales: int, count: int) -> list[int]:
    """For each scale the phi whose place is nearest: ``count`` even places in 0..1, set in by a third of 1 / count for 4, else half."""
    inset = 1 / (3 if count == 4 else 2) / count
    # Rounded as numpy.linspace rounds, which decides ties: the default configuration has one at 2/9.
    step = ((1 - inset) - inset) / max(count - 1, 1)
    ticks = [inset + place * step for place in range(count - 1)] + [1 - inset]
    return [min(range(count), key=lambda place: abs(ticks[place] - scale / max(scales - 1, 1))) for scale in range(scales)]
