"""A codebook whose codes come to stand for one class each: semantic guided clustering (SGC)."""

import torch
from torch import Tensor

from vqkit.codebooks.ema import EMACodebook
from vqkit.ops import nearest_code


class SemanticCodebook(EMACodebook):
    """An ``EMACodebook`` that keeps how often each code was chosen by latents of each class, and assigns labelled latents by both.

    h_kc <- decay h_kc + (1 - decay) (latents of class c that chose k);  P(c | k) = (h_kc + eps) / sum over c' of (h_kc' + eps)
    assigned(x of class c) = argmin over k of |x - code_k|^2 + weight (1 - P(c | k));  without a class: the nearest code

    Args:
        size, dim: K and the length of a code.
        classes: C.
        weight: see the formula; in units of a squared distance.
        Others: those of ``EMACodebook``.

    class_counts: (K, C) buffer h, float32 always; a replaced code forgets its own, and steps without any labelled latent on any rank
    change none. Latents and classes travel in the same all-reduce, of K (dim + C + 1) numbers.

    Source: semantic guided clustering of SGC-VQGAN (arXiv 2409.06105): online clustering by feature and label, without parameters
    of its own. The formulas above are our reading, the published were not at hand; of its pyramid of feature levels there is one.
    """

    def __init__(self, size: int, dim: int, classes: int, *, weight: float = 1.0, **ema):
        super().__init__(size, dim, **ema)
        if classes < 1:
            raise ValueError(f"classes: expected at least 1, got {classes}")
        if not weight >= 0:
            raise ValueError(f"weight: expected at least 0, got {weight}")
        self.classes = classes
        self.weight = weight
        self.register_buffer("class_counts", torch.zeros(size, classes))

    @property
    def class_probabilities(self) -> Tensor:
        """P(c | k), (K, C): of a code that no labelled latent chose, 1 / C each."""
        smoothed = self.class_counts + self.eps
        return smoothed / smoothed.sum(-1, keepdim=True)

    def labelled(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Latents (N, dim) with their classes (N,), int64, -1 for none, as ``observe`` learns from them: (N, dim + C)."""
        return torch.cat([latents, (classes[:, None] == torch.arange(self.classes, device=classes.device)).to(latents.dtype)], 1)

    def assign(self, latents: Tensor, classes: Tensor) -> Tensor:
        """The code of each latent by the formula, (N,) int64, from latents (N, dim) and their classes (N,), int64, -1 for none.

        It is one exact search for the nearest code in dim + C + 1 dimensions, where codes end in s P(. | k), s sqrt(1 - |P(. | k)|^2)
        and latents in s times the unit vector of their class, 0, with s^2 = weight / 2: the squares of these differences add up to
        weight (1 - P(c | k)). O(N (dim + C) + K (dim + C)) memory. No gradient; ties and rows that are not finite as there.
        """
        scale = (self.weight / 2) ** 0.5
        share = self.class_probabilities.to(latents.dtype)
        rest = (1 - share.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        codes = torch.cat([self().to(latents.dtype), scale * share, scale * rest], 1)
        rows = self.labelled(latents, classes)
        rows = torch.cat([rows[:, : self.dim], scale * rows[:, self.dim :], torch.zeros_like(rows[:, :1])], 1)
        return nearest_code(rows, codes)

    def observe(self, latents: Tensor, indices: Tensor, weight: float | Tensor | None = None) -> None:
        """As ``EMACodebook.observe``, of latents (N, dim), or (N, dim + C) as ``labelled`` gives them."""
        if latents.shape[1] == self.dim:
            latents = torch.cat([latents, latents.new_zeros(len(latents), self.classes)], 1)
        super().observe(latents, indices, weight)

    def _learn(self, sums: Tensor, decay: float | Tensor) -> None:
        super()._learn(sums[:, : self.dim], decay)
        counts = sums[:, self.dim :].to(self.class_counts.dtype)
        self.class_counts.lerp_(counts, (1 - decay) * (counts.sum() > 0).to(counts.dtype))

    def _replace(self, dead: Tensor, rows: Tensor) -> None:
        super()._replace(dead, rows[:, : self.dim])
        self.class_counts.masked_fill_(dead[:, None], 0.0)

    def _hold_back(self, yes: bool) -> None:
        super()._hold_back(yes)
        if self._pending is not None and self._pending[0].shape[1] == self.dim:
            sums, counts = self._pending
            self._pending = torch.cat([sums, sums.new_zeros(self.size, self.classes)], 1), counts

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, classes={self.classes}, weight={self.weight}"
