"""The codes of all heads in the tensors that vector-quantize-pytorch keeps them in, and a ``Quantizer`` for each head."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.codebooks import AffineCodebook, EMACodebook
from vqkit.codebooks.ranks import draw_latents, sum_over_ranks
from vqkit.codebooks.sharding import WrittenParameters
from vqkit.codebooks.statistics import Float32Statistics
from vqkit.codebooks.stored import StoredCodebook
from vqkit.ops import code_statistics
from vqkit.ops.straight_through import Gradient
from vqkit.quantizers import Quantizer

# Variances below it count as this much in the affine map.
_LEAST_VARIANCE = 1e-5


@dataclass(frozen=True)
class Learning:
    """How codes learn.

    parameter: the codes are an ``nn.Parameter``.  by_gradient: the codebook loss trains them.  ema_update: they follow running means.
    manual_ema_update: they do so only in ``Codebook.update_ema``.  others: as in ``EMACodebook``.
    """

    parameter: bool = False
    by_gradient: bool = False
    ema_update: bool = True
    manual_ema_update: bool = False
    decay: float = 0.8
    eps: float = 1e-5
    kmeans_init: bool = False
    kmeans_iters: int = 10
    threshold_ema_dead_code: float = 0


class Codebook(Float32Statistics, WrittenParameters):
    """Buffers or parameters initted (), cluster_size (H, K), embed_avg (H, K, D) and embed (H, K, D), on which H quantizers work.

    dim, codebook_size, num_codebooks: D, K and H.  learning: see there.  use_cosine_sim, gradient: of the quantizers.
    affine: (batch_decay, codebook_decay) of an ``AffineCodebook``, or None.  vq_bridge: maps (1, K, D) to the codes that are used.

    The state dict is that of the class of this name there; with ``affine`` it has the moments of the batch from the first batch on.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        learning: Learning,
        *,
        use_cosine_sim: bool = False,
        gradient: Gradient = "straight_through",
        affine: tuple[float, float] | None = None,
        vq_bridge: nn.Module | None = None,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.use_cosine_sim = use_cosine_sim
        self.learning = learning
        self.affine_param = affine is not None
        # Dead codes wait for ``expire`` where several quantizers share the codes.
        self.expires_at_once = True
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not learning.kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = normalize(embed, dim=-1, eps=1e-6) if use_cosine_sim else embed
        self.register_buffer("initted", torch.tensor(not learning.kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learning.parameter:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self.vq_bridge = vq_bridge
        if affine:
            for name in ("batch_mean", "codebook_mean"):
                self.register_buffer(name, torch.zeros(num_codebooks, 1, dim))
            for name in ("batch_variance", "codebook_variance"):
                self.register_buffer(name, torch.ones(num_codebooks, 1, dim))
            for name in ("codebook_mean_needs_init", "codebook_variance_needs_init"):
                self.register_buffer(name, torch.tensor(True))
        books = [HeadCodebook(self, head, dim) for head in range(num_codebooks)]
        used = [HeadAffineCodebook(self, book, *affine) for book in books] if affine else books
        metric = "cosine" if use_cosine_sim else "l2"
        self.quantizers = nn.ModuleList(
            Quantizer(dim, codebook_size, metric=metric, codebook=book, gradient=gradient) for book in used
        )
        # In a tuple: they are parts of the quantizers already.
        self._books = (tuple(books),)

    @property
    def books(self) -> tuple["HeadCodebook", ...]:
        """The codebook of each head, that inside of an affine one."""
        return self._books[0]

    @property
    def ema_update(self) -> bool:
        return self.learning.ema_update

    @property
    def threshold_ema_dead_code(self) -> float:
        return self.learning.threshold_ema_dead_code

    @torch.no_grad()
    def update_ema(self) -> None:
        """Set the codes to the running means as they are now."""
        for book in self.books:
            book.update()

    def expire(self, latents: Tensor, valid: Tensor, head: int = 0) -> None:
        """Replace the dead codes of a head by latents (N, D), drawn at random from the valid ones, (N,) bool."""
        if self.threshold_ema_dead_code:
            self.books[head].expire(latents, valid)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.affine_param and bool(self.codebook_mean_needs_init):
            for name in ("batch_mean", "batch_variance"):
                del destination[prefix + name]

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.affine_param:
            for name in ("batch_mean", "batch_variance"):
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._follow_state()

    @torch.no_grad()
    def _follow_state(self) -> None:
        for quantizer, book in zip(self.quantizers, self.books):
            if not self.initted.is_meta:
                book._awaits_start = not bool(self.initted)
            if self.affine_param:
                quantizer.codebook.started.copy_(~self.codebook_mean_needs_init)


class HeadCodebook(EMACodebook):
    """The codes of one head: what ``EMACodebook`` does, on its slices of a ``Codebook``, read anew at each use.

    As there: codes of the metric "cosine" are kept at unit length, and the codes of a k-means start are their smoothed running means.
    """

    def __init__(self, whole: Codebook, head: int, dim: int):
        learning = whole.learning
        # The slices take the place of what is made here.
        with torch.device("meta"):
            super().__init__(
                whole.codebook_size,
                dim,
                eps=learning.eps,
                decay=learning.decay,
                kmeans_init=learning.kmeans_init,
                kmeans_iters=learning.kmeans_iters,
                threshold_ema_dead_code=learning.threshold_ema_dead_code,
                cosine=whole.use_cosine_sim,
            )
        self._buffers.clear()
        self._whole = (whole,)
        self.head = head
        self.follow()

    codes = property(lambda self: self._whole[0].embed[self.head])
    embed_sum = property(lambda self: self._whole[0].embed_avg[self.head])
    cluster_size = property(lambda self: self._whole[0].cluster_size[self.head])
    trained_by_gradient = property(lambda self: self._whole[0].learning.by_gradient)

    @property
    def initialised(self) -> Tensor:
        # One flag for all heads, which the last one writes.
        whole = self._whole[0]
        return whole.initted if self.head == whole.num_codebooks - 1 else whole.initted.clone()

    def follow(self, ema_update: bool | None = None, learns: bool = True) -> None:
        """How the next batches are learnt from: ``ema_update`` in the place of the codebook's own, or not at all."""
        learning = self._whole[0].learning
        moves = learning.ema_update if ema_update is None else ema_update
        self.observes = learns and bool(moves or learning.threshold_ema_dead_code)
        self.deferred = not moves or learning.manual_ema_update

    def forward(self) -> Tensor:
        bridge = self._whole[0].vq_bridge
        return super().forward() if bridge is None else bridge(self.codes[None])[0]

    @torch.no_grad()
    def observe(self, latents: Tensor, indices: Tensor, weight: float | Tensor | Callable | None = None) -> None:
        """As ``StoredCodebook.observe``; a weight may also be computed, from sums (1, K, D) and counts (1, K) of all ranks."""
        if not self.observes:
            return
        if callable(weight):
            sums, counts = code_statistics(latents, indices, self.size)
            sums, counts = sum_over_ranks(sums, counts.to(sums.dtype))
            weight = weight(sums[None], counts[None])
        if isinstance(weight, Tensor) and weight.ndim == 2:
            weight = weight[0]
        super().observe(latents, indices, weight)

    @torch.no_grad()
    def update(self) -> None:
        super().update()
        if self.cosine:
            self._write(normalize(self.codes, dim=-1, eps=1e-6), self.codes.new_ones((), dtype=torch.bool))

    @torch.no_grad()
    def expire(self, latents: Tensor, valid: Tensor) -> None:
        rows, drawn = sum_over_ranks(*draw_latents(latents, valid, self.size))
        self._put((self.cluster_size < self.threshold_ema_dead_code) & (drawn > 0), rows)

    def _restart(self, centres: Tensor, counts: Tensor, start: Tensor) -> None:
        super()._restart(centres, counts, start)
        self.update()

    def _write(self, codes: Tensor, where: Tensor) -> None:
        self._whole[0].write("embed", codes, where, self.head)

    def _replace(self, dead: Tensor, rows: Tensor) -> None:
        if self._whole[0].expires_at_once:
            self._put(dead, rows)

    def _put(self, dead: Tensor, rows: Tensor) -> None:
        # Codes that are updated by hand are replaced all the same.
        StoredCodebook._replace(self, dead, rows)
        self.embed_sum.copy_((rows * self.threshold_ema_dead_code).to(self.embed_sum.dtype).where(dead[:, None], self.embed_sum))


class HeadAffineCodebook(AffineCodebook):
    """``AffineCodebook`` over the codes of one head, its moments slices of a ``Codebook``."""

    def __init__(self, whole: Codebook, inner: HeadCodebook, batch_decay: float, codebook_decay: float):
        with torch.device("meta"):
            super().__init__(inner, batch_decay, codebook_decay)
        self._buffers.clear()
        self._whole = (whole,)
        self.register_buffer("started", torch.tensor(False), persistent=False)

    latent_mean = property(lambda self: self._whole[0].batch_mean[self.inner.head, 0])
    latent_variance = property(lambda self: self._whole[0].batch_variance[self.inner.head, 0])
    code_mean = property(lambda self: self._whole[0].codebook_mean[self.inner.head, 0])
    code_variance = property(lambda self: self._whole[0].codebook_variance[self.inner.head, 0])

    @torch.no_grad()
    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        # A k-means start is of the latents themselves.
        self.inner.prepare(latents, valid)
        super().prepare(latents, valid)
        whole = self._whole[0]
        whole.codebook_mean_needs_init.copy_(~self.started)
        whole.codebook_variance_needs_init.copy_(~self.started)

    def _scale(self) -> Tensor:
        return (self.latent_variance.clamp(min=_LEAST_VARIANCE) / self.code_variance.clamp(min=_LEAST_VARIANCE)).sqrt()
