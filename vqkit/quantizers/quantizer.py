"""The drop-in vector quantizer: project, search, pass the gradient straight through, let the codebook learn."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.codebooks import CODEBOOKS, Codebook
from vqkit.ops import code_counts, nearest_codes, sample_codes, straight_through
from vqkit.ops.nearest import MAX_K, Metric
from vqkit.ops.statistics import check_range
from vqkit.ops.straight_through import Gradient
from vqkit.quantizers.health import Health, HealthMonitor
from vqkit.quantizers.layout import feature_rows, project_rows
from vqkit.quantizers.quantized import Quantized


class Quantizer(nn.Module):
    """Replaces every latent by its nearest code.

    loss = commitment_weight * mean (x - sg q)^2 [+ mean (sg x - q)^2 when the codebook is trained by gradient] + regularizers

    Args:
        dim: D, size of the feature dimension of the input.
        codebook_size: K.
        codebook_dim: length of a code; a linear layer in and one out join it to ``dim`` where they differ. Default: dim.
        metric: "l2", or "cosine": latents and codes are projected to the unit sphere.
        codebook: "ema" (moving average of the latents), "learned" (gradient), another name in ``vqkit.codebooks.CODEBOOKS``, or a
            ``Codebook`` of matching size, and of matching ``cosine`` if it has that.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code: of a codebook given by name that has such an option, see
            ``StoredCodebook``. Default of decay: that of the codebook, 0.8 for "ema". A ``Codebook`` has its own.
        commitment_weight: see the formula.
        gradient: "straight_through" or "rotation", see ``ops.straight_through``.
        heads: each latent is cut into this many pieces of ``codebook_dim``, all searched in one codebook.
        top_k: the nearest ``top_k`` codes are averaged (1..8).
        temperature: above 0, training draws each latent's code with probability softmax(-distance / temperature), under "cosine"
            softmax(similarity / temperature); the distance is not squared. Not with top_k > 1. It may be changed during training.
            All N x K distances are computed then, in blocks of rows: O(N + K) memory, but a cost that grows.
        regularizers: terms of the training loss, each with its own ``name`` and ``weight``: ``Orthogonality``, ``Diversity``,
            ``Entropy``, ``Contrastive`` of ``vqkit.quantizers.regularizers``, or callables of your own, which get latents (N, D), zero
            where masked, codes (K, D) and indices (N, top_k) as they are searched, and valid, (N,) bool, and return ().
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    Raises ValueError or TypeError for arguments that do not fit.

    In training mode it keeps running values of its ``health``; one that is switched to eval mode with a collapsed codebook warns.

    Source: van den Oord et al. 2017 (arXiv 1711.00937); factorised codes and cosine metric: Yu et al. 2021 (arXiv 2110.04627),
    section 3.2; sampling: ``stochastic_sample_codes`` of vector-quantize-pytorch (Lee et al. 2022, arXiv 2203.01941, section
    3.2, have the squared distance).
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        metric: Metric = "l2",
        codebook: str | Codebook = "ema",
        decay: float | None = None,
        commitment_weight: float = 1.0,
        gradient: Gradient = "straight_through",
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 0,
        heads: int = 1,
        top_k: int = 1,
        temperature: float = 0.0,
        regularizers: Sequence[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = (),
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
        if not temperature >= 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        if temperature and top_k > 1:
            raise ValueError(f"temperature: expected 0 with top_k={top_k}, got {temperature}")
        codebook_dim = codebook_dim or dim
        options = {
            "decay": decay,
            "kmeans_init": kmeans_init,
            "kmeans_iters": kmeans_iters,
            "threshold_ema_dead_code": threshold_ema_dead_code,
        }
        given = {name: value for name, value in options.items() if value != Quantizer.__init__.__kwdefaults__[name]}
        codebook = _resolve_codebook(codebook, codebook_size, codebook_dim, metric, given)
        _check_regularizers(regularizers, codebook, metric)
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.metric = metric
        self.commitment_weight = commitment_weight
        self.gradient = gradient
        self.heads = heads
        self.top_k = top_k
        self.temperature = temperature
        self.regularizers = tuple(regularizers)
        self.channel_first = channel_first
        self.codebook = codebook
        joined = codebook_dim * heads == dim
        self.project_in = nn.Identity() if joined else nn.Linear(dim, codebook_dim * heads)
        self.project_out = nn.Identity() if joined else nn.Linear(codebook_dim * heads, dim)
        self.monitor = HealthMonitor(codebook_size)
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

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,): number of codes of each part, of which there is one."""
        return (self.codebook_size,)

    @property
    def selections(self) -> tuple[int, ...]:
        """(heads * top_k,): number of indices that each part contributes to a position."""
        return (self.heads * self.top_k,)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        codes: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        learn: bool | None = None,
        update_weight: float | Tensor | None = None,
    ) -> Quantized:
        """Quantize ``x`` and, in training mode, let the codebook learn from it.

        Args:
            x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype (the search runs in float32 or better).
            mask: bool, shape of ``x`` without D; False leaves a row out: output 0, index -1, no part in losses, statistics, counts or
                gradients. A row that holds NaN or infinity is left out as well. Of sequences (B, N, D) or (B, D, N) also int64 (B,), the
                lengths: the positions from there on are left out.
            codes: (K, codebook_dim) to use in place of the codebook's own.
            indices: as ``encode`` returns them, to take in place of the nearest; -1 leaves a row out. The codebook learns from them; what
                it takes from a batch before the search (a k-means start, affine moments) waits for a call without.
            learn: whether the codebook learns from ``x``. False freezes it for this call: neither its statistics nor, by gradient,
                the codes change. Default: in training mode.
            update_weight: of a codebook that follows running means: a factor () or (K,) of how far this call moves them.

        Returns:
            ``Quantized``: quantized as ``x`` (equal to ``decode(indices)`` with the codes used), indices of shape
            (*x without D [, heads][, top_k]), loss ().

        The loss has its ``regularizers`` in training mode only.

        Raises ValueError for an ``x``, ``mask``, ``codes``, ``indices`` or ``update_weight`` that does not fit, or IndexError for an index
        (on the CPU); nothing has changed then.
        """
        codes = None if codes is None else self._checked(codes)
        weight = () if update_weight is None else (self._checked_weight(update_weight),)
        latents, shape, valid = self._latents(x, mask)
        learning = self.training if learn is None else learn
        if indices is not None:
            indices = self._columns(indices, shape).where(valid[:, None], -1)
            valid = indices[:, 0] >= 0
        elif learning:
            self.codebook.prepare(latents.detach(), valid)
        codes = self.resolve_codes(codes).to(latents.dtype)
        codes = codes.detach() if learn is False else codes
        if indices is None:
            sampled = self.training and self.temperature
            indices = self._sample(latents, codes, valid) if sampled else self._search(latents, codes, valid)
        quantized, commitment, codebook_loss = straight_through(latents, codes, indices, gradient=self.gradient)
        loss = self.commitment_weight * commitment
        losses = {"commitment": commitment}
        if self.codebook.trained_by_gradient:
            loss, losses["codebook"] = loss + codebook_loss, codebook_loss
        counts = code_counts(indices, self.codebook_size)
        if self.training:
            for regularizer in self.regularizers:
                term = regularizer(latents.where(valid[:, None], 0.0), codes, indices, valid)
                loss, losses[regularizer.name] = loss + regularizer.weight * term, term
            self.monitor.observe(latents.detach(), quantized.detach(), counts, valid)
        if learning:
            self.codebook.observe(latents.detach().repeat_interleave(self.top_k, 0), indices.reshape(-1), *weight)
        output = self._restored(quantized, shape, valid, x.dtype)
        return Quantized(output, self._shaped(indices, shape), loss, losses, counts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, codes: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns, the nearest also where training draws them, without learning."""
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
        tail = self._tail
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

    def health(self) -> Health:
        """How the codebook fares in training. Waits for the device; warns, once, of a collapsed codebook."""
        return self.monitor.read()

    @property
    def _tail(self) -> tuple[int, ...]:
        """The dimensions that indices have beside those of the positions."""
        return (self.heads,) * (self.heads > 1) + (self.top_k,) * (self.top_k > 1)

    def _checked_weight(self, weight: float | Tensor) -> float | Tensor:
        if not self.codebook.weighs_updates:
            raise ValueError(f"update_weight: expected none with a {type(self.codebook).__name__}, which follows no running mean")
        if isinstance(weight, Tensor) and tuple(weight.shape) not in ((), (self.codebook_size,)):
            raise ValueError(f"update_weight: expected a number, () or ({self.codebook_size},), got shape {tuple(weight.shape)}")
        return weight

    def _checked(self, codes: Tensor) -> Tensor:
        if tuple(codes.shape) != (self.codebook_size, self.codebook_dim):
            raise ValueError(f"codes: expected shape {(self.codebook_size, self.codebook_dim)}, got {tuple(codes.shape)}")
        return codes

    def _latents(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, torch.Size, Tensor]:
        """Flat latents (N * heads, codebook_dim), the shape of x without D, and which of the latents count, (N * heads,) bool."""
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        shape = rows.shape[:-1]
        # Without a projection the operators leave out what is not valid; a copy of the rows would do no more.
        if not isinstance(self.project_in, nn.Identity):
            rows, valid = project_rows(self.project_in, rows, valid)
        valid = valid.reshape(-1).repeat_interleave(self.heads)
        latents = rows.reshape(-1, self.codebook_dim).to(torch.promote_types(rows.dtype, torch.float32))
        if self.metric == "cosine":
            latents = normalize(latents.where(valid[:, None], 0.0), dim=-1)
        return latents, shape, valid

    def _search(self, latents: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        _, indices = nearest_codes(latents, codes, self.top_k, metric=self.metric)
        return indices.where(valid[:, None], -1)

    def _columns(self, indices: Tensor, shape: torch.Size) -> Tensor:
        """Indices that were given for positions of this shape, as they are searched: (N * heads, top_k)."""
        expected = (*shape, *self._tail)
        if indices.dtype != torch.int64 or tuple(indices.shape) != expected:
            raise ValueError(f"indices: expected int64 of shape {expected}, got {indices.dtype} {tuple(indices.shape)}")
        check_range(indices, self.codebook_size, "codebook_size")
        return indices.reshape(-1, self.top_k)

    def _sample(self, latents: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        affinity = "similarity" if self.metric == "cosine" else "distance"
        return sample_codes(latents, codes, valid, scale=1 / self.temperature, affinity=affinity)[:, None]

    def _shaped(self, indices: Tensor, shape: torch.Size) -> Tensor:
        return indices.view((*shape, *self._tail))

    def _restored(self, vectors: Tensor, shape: torch.Size, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """Flat vectors back in the layout of x; masked places stay zero after the projection."""
        vectors = vectors.view(*shape, self.heads * self.codebook_dim)
        output = self.project_out(vectors.to(dtype))
        if not isinstance(self.project_out, nn.Identity):
            output = output.where(valid.view(*shape, self.heads)[..., :1], 0.0)
        return output.movedim(-1, 1) if self.channel_first else output

    def extra_repr(self) -> str:
        extras = f", temperature={self.temperature}" if self.temperature else ""
        extras += f", regularizers={self.regularizers}" if self.regularizers else ""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, metric={self.metric!r}, gradient={self.gradient!r}, "
            f"heads={self.heads}, top_k={self.top_k}, channel_first={self.channel_first}{extras}"
        )


def _resolve_codebook(codebook: str | Codebook, size: int, dim: int, metric: Metric, given: dict[str, object]) -> Codebook:
    """The codebook of this name, with the options given, or this one, if it fits; raises where it or an option does not."""
    cosine = metric == "cosine"
    if isinstance(codebook, str):
        if codebook not in CODEBOOKS:
            raise ValueError(f"codebook: expected one of {', '.join(map(repr, CODEBOOKS))} or a Codebook, got {codebook!r}")
        options = CODEBOOKS[codebook].options()
        for name in given.keys() - options:
            raise ValueError(f"{name}: expected none with codebook={codebook!r}, which has no such option, got {given[name]}")
        return CODEBOOKS[codebook](size, dim, **given, **({"cosine": cosine} if "cosine" in options else {}))
    if not isinstance(codebook, Codebook):
        raise TypeError(f"codebook: expected a name or a vqkit.codebooks.Codebook, got {type(codebook).__name__}")
    for name, value in given.items():
        raise ValueError(f"{name}: expected none beside a {type(codebook).__name__}, which has its own, got {value}")
    if getattr(codebook, "cosine", cosine) != cosine:
        raise ValueError(f"codebook: expected one with cosine={cosine} for metric={metric!r}, got cosine={codebook.cosine}")
    if (codebook.size, codebook.dim) != (size, dim):
        raise ValueError(f"codebook: expected {size} codes of length {dim}, got {codebook.size} of length {codebook.dim}")
    return codebook


def _check_regularizers(regularizers: Sequence, codebook: Codebook, metric: Metric) -> None:
    names = ["commitment", "codebook"]
    for regularizer in regularizers:
        kind = type(regularizer).__name__
        if not callable(regularizer) or not hasattr(regularizer, "name") or not hasattr(regularizer, "weight"):
            raise TypeError(f"regularizers: expected callables with a name and a weight, got {kind}")
        if regularizer.name in names:
            raise ValueError(f"regularizers: expected names other than {', '.join(map(repr, names))}, got {regularizer.name!r}")
        if getattr(regularizer, "metric", metric) != metric:
            raise ValueError(f"regularizers: expected {kind} with metric={metric!r}, got {regularizer.metric!r}")
        names.append(regularizer.name)
        if getattr(regularizer, "acts_on", None) == "codes" and not codebook.trained_by_gradient:
            warnings.warn(
                f"regularizers: {kind} changes the codes by gradient, and those of {type(codebook).__name__} have none", stacklevel=3
            )
