"""What codebooks that store their vectors share: a k-means start, running code use, and the replacement of dead codes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vqkit.codebooks.codebook import Codebook
from vqkit.codebooks.kmeans import kmeans_start
from vqkit.codebooks.ranks import draw_latents, sum_over_ranks
from vqkit.codebooks.sharding import WrittenParameters
from vqkit.codebooks.statistics import Float32Statistics
from vqkit.ops import code_statistics, ema_update


class StoredCodebook(Float32Statistics, WrittenParameters, Codebook):
    """A codebook whose K vectors are stored, as ``codes``.

    size, dim: K and the length of a code.
    decay: of the running code use ``cluster_size`` (K,), in latents a step. 1: ``observe`` learns nothing.
    kmeans_init: the first training batch in which any rank has a valid latent sets the codes to its k-means centres, after
        ``kmeans_iters`` iterations from distinct latents.
    threshold_ema_dead_code: a code whose running use is below this is replaced by a latent of the batch. 0: never.
    cosine: the quantizer looks at directions only (it projects the codes to the unit sphere), so k-means is spherical.

    Statistics stay in float32 whatever ``.to(dtype)`` asks for. All ranks hold the same codes and agree on replacements;
    the collectives do not depend on the data. Random draws come from torch's default generator. A step waits for the device
    only while the k-means start is to come; a compiled one also from then until the next call of ``train`` or ``eval``.
    """

    weighs_updates = True
    codes: Tensor
    # Sums and counts of this rank that ``accumulate`` holds back. Not buffers, which DistributedDataParallel would overwrite.
    _pending: tuple[Tensor, Tensor] | None = None
    _holds_back = False

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        decay: float = 0.8,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 0,
        cosine: bool = False,
    ):
        super().__init__(size, dim)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay: expected 0 <= decay <= 1, got {decay}")
        if threshold_ema_dead_code < 0:
            raise ValueError(f"threshold_ema_dead_code: expected at least 0, got {threshold_ema_dead_code}")
        if kmeans_init and kmeans_iters < 1:
            raise ValueError(f"kmeans_iters: expected at least 1, got {kmeans_iters}")
        self.decay = decay
        self.kmeans_iters = kmeans_iters
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.cosine = cosine
        self.register_buffer("cluster_size", torch.ones(size))
        self.register_buffer("initialised", torch.tensor(not kmeans_init))
        # False where the buffer is known to be True, so that no step waits for the device. It may lag behind the buffer, which
        # other ranks broadcast and compiled steps write.
        self._awaits_start = kmeans_init

    @torch.no_grad()
    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        if self._awaits_start:
            found = kmeans_start(latents, valid, self.initialised, self.size, self.kmeans_iters, self.cosine)
            self._restart(*found)
            self.initialised.logical_or_(found[-1])
            if not torch.compiler.is_compiling():
                self._awaits_start = not bool(self.initialised)

    @torch.no_grad()
    def observe(self, latents: Tensor, indices: Tensor, weight: float | Tensor | None = None) -> None:
        """As ``Codebook.observe``; with a weight, () or (K,), in the place of decay stands 1 - (1 - decay) * weight."""
        if self.decay == 1:
            return
        sums, counts = code_statistics(latents, indices, self.size)
        shared = [sums, counts.to(sums.dtype)]
        if self._pending is not None:
            for total, part in zip(self._pending, shared):
                total.add_(part)
            if self._holds_back:
                return
            shared = [total.to(part.dtype, copy=True) for total, part in zip(self._pending, shared)]
            for total in self._pending:
                total.zero_()
        if self.threshold_ema_dead_code:
            shared += draw_latents(latents, indices >= 0, self.size)
        sums, counts, *replacements = sum_over_ranks(*shared)
        weight = weight.to(self.cluster_size) if isinstance(weight, Tensor) else weight
        decay = self.decay if weight is None else 1 - (1 - self.decay) * weight
        ema_update(self.cluster_size, counts, decay)
        self._learn(sums, decay[:, None] if isinstance(decay, Tensor) and decay.ndim else decay)
        if replacements:
            rows, drawn = replacements
            self._replace((self.cluster_size < self.threshold_ema_dead_code) & (drawn > 0), rows)

    def _restart(self, centres: Tensor, counts: Tensor, start: Tensor) -> None:
        """Where start, () bool, begin again from these codes, (K, dim), and how many latents chose each, (K,)."""
        self._write(centres, start)
        self.cluster_size.copy_(counts.to(self.cluster_size.dtype).where(start, self.cluster_size))

    def _write(self, codes: Tensor, where: Tensor) -> None:
        """Set the codes to these, (K, dim), where ``where``, bool, () or (K, 1)."""
        self.write("codes", codes, where)

    def _learn(self, sums: Tensor, decay: float | Tensor) -> None:
        """Learn from the sums (K, dim) of the latents that chose each code, over all ranks; decay: a number, () or (K, 1)."""

    def _replace(self, dead: Tensor, rows: Tensor) -> None:
        """Put rows (K, dim) in the place of the dead codes, dead (K,) bool, and give them a use at the threshold."""
        self._write(rows, dead[:, None])
        self.cluster_size.masked_fill_(dead, self.threshold_ema_dead_code)

    def _hold_back(self, yes: bool) -> None:
        """Whether ``observe`` only adds up, for the next one that does not."""
        self._holds_back = yes
        if yes and (self._pending is None or self._pending[0].device != self.cluster_size.device):
            self._pending = self.cluster_size.new_zeros(self.size, self.dim), torch.zeros_like(self.cluster_size)

    def train(self, mode: bool = True):
        if self._awaits_start and not self.initialised.is_meta:
            self._awaits_start = not bool(self.initialised)
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}initialised" in state_dict:
            self._awaits_start = not bool(state_dict[f"{prefix}initialised"])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, decay={self.decay}, threshold_ema_dead_code={self.threshold_ema_dead_code}"


@contextmanager
def accumulate(module: nn.Module) -> Iterator[None]:
    """While this context lasts, the codebooks in ``module`` collect what they observe; the first training step after it applies all.

    For gradient accumulation, as ``DistributedDataParallel.no_sync``: every micro-batch but the last inside, the last outside. The
    codebooks then learn what one batch of all of them would have taught, with one all-reduce. Codes by which gradient
    descent trains are accumulated by the gradients themselves. A k-means start and the latents that replace dead codes
    come from one micro-batch, the first and the last. All ranks enter and leave at the same steps.

        for number, batch in enumerate(batches):
            with accumulate(model) if number < len(batches) - 1 else nullcontext():
                model(batch).loss.backward()
    """
    books = [part for part in module.modules() if isinstance(part, StoredCodebook) and not part._holds_back]
    for book in books:
        book._hold_back(True)
    try:
        yield
    finally:
        for book in books:
            book._hold_back(False)
