"""A codebook that follows the running mean of the latents that chose each code."""

import torch
from torch import Tensor

from vqkit.codebooks.stored import StoredCodebook
from vqkit.ops import ema_update


class EMACodebook(StoredCodebook):
    """K vectors, each the exponential moving average of its latents; no gradient.

    n <- decay n + (1 - decay) counts;  m <- decay m + (1 - decay) sums;  code = m / n', with n' the Laplace-smoothed n.

    The arguments are those of ``StoredCodebook``, and
    eps: of the smoothing n' = (n + eps) / (sum n + K eps) * sum n, which keeps unused codes from a division by zero.
    deferred: n and m follow every step, the codes only when ``update`` is called; also those that replace dead ones.

    A replaced code takes its average with it, so that the next update does not bring the dead vector back.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1; Razavi et al. 2019 (arXiv 1906.00446), section 3.1.
    """

    def __init__(self, size: int, dim: int, *, eps: float = 1e-5, deferred: bool = False, **stored):
        super().__init__(size, dim, **stored)
        self.eps = eps
        self.deferred = deferred
        codes = torch.empty(size, dim)
        torch.nn.init.kaiming_uniform_(codes)
        self.register_buffer("codes", codes)
        self.register_buffer("embed_sum", codes.clone())

    def forward(self) -> Tensor:
        # A training step writes the codes in place while a backward pass, also one of eval mode, still needs those it used.
        return self.codes.clone() if self.training or torch.is_grad_enabled() else self.codes

    def _restart(self, centres: Tensor, counts: Tensor, start: Tensor) -> None:
        # A centre without latents has one for a start: from an average of nothing its code would come back as the origin.
        counts = counts.clamp(min=1)
        super()._restart(centres, counts, start)
        self.embed_sum.copy_((centres * counts[:, None]).to(self.embed_sum.dtype).where(start, self.embed_sum))

    def _learn(self, sums: Tensor, decay: float | Tensor) -> None:
        ema_update(self.embed_sum, sums, decay)
        if not self.deferred:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Set the codes to the running means as they are now; after every step unless ``deferred``."""
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.eps) / (total + self.size * self.eps) * total
        self._write(self.embed_sum / smoothed[:, None], total > 0)

    def _replace(self, dead: Tensor, rows: Tensor) -> None:
        super()._replace(dead, self.codes if self.deferred else rows)
        self.embed_sum.copy_((rows * self.threshold_ema_dead_code).to(self.embed_sum.dtype).where(dead[:, None], self.embed_sum))
