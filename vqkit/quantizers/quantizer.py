"""The drop-in vector quantizer: project, search, pass the gradient straight through, let the codebook learn."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.codebooks import Codebook, EMACodebook, LearnedCodebook
from vqkit.codebooks.stored import StoredCodebook
from vqkit.ops import code_counts, nearest_codes, straight_through
from vqkit.ops.nearest import MAX_K, Metric
from vqkit.ops.straight_through import Gradient
from vqkit.quantizers.quantized import Quantized

_STORED = {"ema": EMACodebook, "learned": LearnedCodebook}


class Quantizer(nn.Module):
    """Replaces every latent by its nearest code.

    loss = commitment_weight * mean (x - sg q)^2 [+ mean (sg x - q)^2 when the codebook is trained by gradient]

    Args:
        dim: D, size of the feature dimension of the input.
        codebook_size: K.
        codebook_dim: length of a code; a linear layer in and one out join it to ``dim`` where they differ. Default: dim.
        metric: "l2", or "cosine": latents and codes are projected to the unit sphere.
        codebook: "ema" (moving average of the latents), "learned" (gradient), or a ``Codebook`` of matching size, and of matching
            ``cosine`` if it has that.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code: of a codebook given by name, see ``StoredCodebook``. A ``Codebook``
            has its own.
        commitment_weight: see the formula.
        gradient: "straight_through" or "rotation", see ``ops.straight_through``.
        heads: each latent is cut into this many pieces of ``codebook_dim``, all searched in one codebook.
        top_k: the nearest ``top_k`` codes are averaged (1..8).
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    Raises ValueError or TypeError for arguments that do not fit.

    Source: van den Oord et al. 2017 (arXiv 1711.00937); factorised codes and cosine metric: Yu et al. 2021 (arXiv 2110.04627),
    section 3.2.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        metric: Metric = "l2",
        codebook: Literal["ema", "learned"] | Codebook = "ema",
        decay: float = 0.8,
        commitment_weight: float = 1.0,
        gradient: Gradient = "straight_through",
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 0,
        heads: int = 1,
        top_k: int = 1,
        channel_first: bool = False,
    ):
        super().__init__()
        for name, value in (("dim", dim), ("codebook_size", codebook_size), ("codebook_dim", codebook_dim), ("heads", heads)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric: expected 'l2' or 'cosine', got {metric!r}")
        if gradient not in ("straight_through", "rotation"):
            raise ValueError(f"gradient: expected 'straight_through' or 'rotation', got {gradient!r}")
        if not 1 <= top_k <= min(MAX_K, codebook_size):
            raise ValueError(f"top_k: expected 1 <= top_k <= min({MAX_K}, codebook_size), got {top_k}")
        codebook_dim = codebook_dim or dim
        options = {
            "decay": decay,
            "kmeans_init": kmeans_init,
            "kmeans_iters": kmeans_iters,
            "threshold_ema_dead_code": threshold_ema_dead_code,
        }
        cosine = metric == "cosine"
        if isinstance(codebook, str):
            if codebook not in _STORED:
                raise ValueError(f"codebook: expected one of {', '.join(map(repr, _STORED))} or a Codebook, got {codebook!r}")
            codebook = _STORED[codebook](codebook_size, codebook_dim, **options, cosine=cosine)
        elif not isinstance(codebook, Codebook):
            raise TypeError(f"codebook: expected a name or a vqkit.codebooks.Codebook, got {type(codebook).__name__}")
        else:
            for name, value in options.items():
                if value != Quantizer.__init__.__kwdefaults__[name]:
                    raise ValueError(f"{name}: expected none beside a {type(codebook).__name__}, which has its own, got {value}")
        if isinstance(codebook, StoredCodebook) and codebook.cosine != cosine:
            raise ValueError(f"codebook: expected one with cosine={cosine} for metric={metric!r}, got cosine={codebook.cosine}")
        if (codebook.size, codebook.dim) != (codebook_size, codebook_dim):
            raise ValueError(
                f"codebook: expected {codebook_size} codes of length {codebook_dim}, got {codebook.size} of length {codebook.dim}"
            )
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.metric = metric
        self.commitment_weight = commitment_weight
        self.gradient = gradient
        self.heads = heads
        self.top_k = top_k
        self.channel_first = channel_first
        self.codebook = codebook
        joined = codebook_dim * heads == dim
        self.project_in = nn.Identity() if joined else nn.Linear(dim, codebook_dim * heads)
        self.project_out = nn.Identity() if joined else nn.Linear(codebook_dim * heads, dim)
        # Follows ``.to(dtype)`` where nothing else does: an EMA codebook keeps float32.
        self.register_buffer("_dtype_marker", torch.empty(0), persistent=False)

    @property
    def codes(self) -> Tensor:
        """The codes as they are now, (K, codebook_dim); of unit length under "cosine"."""
        return self.resolve_codes(None)

    def resolve_codes(self, codes: Tensor | None) -> Tensor:
        """These codes, or the codebook's own for None, as they are searched: (K, codebook_dim); of unit length under "cosine"."""
        codes = self.codebook() if codes is None else self._checked(codes)
        return normalize(codes, dim=-1) if self.metric == "cosine" else codes

    def forward(self, x: Tensor, mask: Tensor | None = None, codes: Tensor | None = None) -> Quantized:
        """Quantize ``x`` and, in training mode, let the codebook learn from it.

        Args:
            x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype (the search runs in float32 or better).
            mask: bool, shape of ``x`` without D; False leaves a row out: output 0, index -1, no part in losses, statistics, counts or
                gradients. A row that holds NaN or infinity is left out as well.
            codes: (K, codebook_dim) to use in place of the codebook's own.

        Returns:
            ``Quantized``: quantized as ``x`` (equal to ``decode(indices)`` with the codes used), indices of shape
            (*x without D [, heads][, top_k]), loss ().

        Raises ValueError for an ``x``, ``mask`` or ``codes`` that does not fit; nothing has changed then.
        """
        codes = None if codes is None else self._checked(codes)
        latents, shape, valid = self._latents(x, mask)
        if self.training:
            self.codebook.prepare(latents.detach(), valid)
        codes = self.resolve_codes(codes).to(latents.dtype)
        indices = self._search(latents, codes, valid)
        quantized, commitment, codebook_loss = straight_through(latents, codes, indices, gradient=self.gradient)
        loss = self.commitment_weight * commitment
        losses = {"commitment": commitment}
        if self.codebook.trained_by_gradient:
            loss, losses["codebook"] = loss + codebook_loss, codebook_loss
        if self.training:
            self.codebook.observe(latents.detach().repeat_interleave(self.top_k, 0), indices.reshape(-1))
        output = self._restored(quantized, shape, valid, x.dtype)
        return Quantized(output, self._shaped(indices, shape), loss, losses, code_counts(indices, self.codebook_size))

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, codes: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns, without learning."""
        latents, shape, valid = self._latents(x, mask)
        codes = self.resolve_codes(codes).to(latents.dtype)
        return self._shaped(self._search(latents, codes, valid), shape)

    @torch.no_grad()
    def decode(self, indices: Tensor, codes: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, in the layout of ``x``.

        ``decode(encode(x))`` has the bits of the output of eval-mode ``forward(x)`` where ``x`` has this dtype.

        indices: as ``encode`` returns them; -1 gives a zero vector.  codes: as in ``forward``.
        dtype: that of ``x``. Default: the dtype of the module, set by ``.to(dtype)`` and the like.
        Raises ValueError for a shape or IndexError for an index that does not fit (on the CPU). No gradient.
        """
        tail = (self.heads,) * (self.heads > 1) + (self.top_k,) * (self.top_k > 1)
        if tail and tuple(indices.shape[-len(tail) :]) != tail:
            raise ValueError(f"indices: expected a shape that ends in {tail} (heads, top_k), got {tuple(indices.shape)}")
        shape = indices.shape[: indices.ndim - len(tail)]
        if dtype is None:
            follows = self._dtype_marker if codes is None else codes
            dtype = next((p.dtype for p in (*self.project_out.parameters(), *self.parameters())), follows.dtype)
        codes = self.resolve_codes(codes).to(torch.promote_types(dtype, torch.float32))
        columns = indices.reshape(-1, self.top_k)
        # Through the operator that forward uses, so that averages of several codes have the same bits.
        vectors, _, _ = straight_through(codes.new_zeros(len(columns), self.codebook_dim), codes, columns)
        return self._restored(vectors, shape, columns[:, 0] >= 0, dtype)

    def _checked(self, codes: Tensor) -> Tensor:
        if tuple(codes.shape) != (self.codebook_size, self.codebook_dim):
            raise ValueError(f"codes: expected shape {(self.codebook_size, self.codebook_dim)}, got {tuple(codes.shape)}")
        return codes

    def _latents(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, torch.Size, Tensor]:
        """Flat latents (N * heads, codebook_dim), the shape of x without D, and which of the latents count, (N * heads,) bool."""
        rows = x.movedim(1, -1) if self.channel_first else x
        if not x.is_floating_point() or x.ndim < 1 + self.channel_first or rows.shape[-1] != self.dim:
            where = "(B, D, *spatial)" if self.channel_first else "(..., D)"
            raise ValueError(f"x: expected floating point {where} with D = {self.dim}, got {x.dtype} {tuple(x.shape)}")
        shape = rows.shape[:-1]
        if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
            raise ValueError(f"mask: expected bool of shape {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
        valid = _finite(rows, mask)
        if not isinstance(self.project_in, nn.Identity):
            weight = self.project_in.weight
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise ValueError(f"x: expected {weight.dtype} as project_in, or autocast, got {x.dtype}")
            # Not even a zero gradient times NaN may reach the weights.
            rows = self.project_in(rows.where(valid[..., None], 0.0))
            valid = _finite(rows, valid)
        valid = valid.reshape(-1).repeat_interleave(self.heads)
        latents = rows.reshape(-1, self.codebook_dim).to(torch.promote_types(rows.dtype, torch.float32))
        if self.metric == "cosine":
            latents = normalize(latents.where(valid[:, None], 0.0), dim=-1)
        return latents, shape, valid

    def _search(self, latents: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        _, indices = nearest_codes(latents, codes, self.top_k, metric=self.metric)
        return indices.where(valid[:, None], -1)

    def _shaped(self, indices: Tensor, shape: torch.Size) -> Tensor:
        return indices.view((*shape, *(self.heads,) * (self.heads > 1), *(self.top_k,) * (self.top_k > 1)))

    def _restored(self, vectors: Tensor, shape: torch.Size, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """Flat vectors back in the layout of x; masked places stay zero after the projection."""
        vectors = vectors.view(*shape, self.heads * self.codebook_dim)
        output = self.project_out(vectors.to(dtype))
        if not isinstance(self.project_out, nn.Identity):
            output = output.where(valid.view(*shape, self.heads)[..., :1], 0.0)
        return output.movedim(-1, 1) if self.channel_first else output

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, metric={self.metric!r}, gradient={self.gradient!r}, "
            f"heads={self.heads}, top_k={self.top_k}, channel_first={self.channel_first}"
        )


def _finite(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Which rows (..., D) are finite and, where there is a mask (...), in it."""
    finite = rows.detach().isfinite().all(-1)
    return finite if mask is None else finite & mask
