"""One codebook for all stages of a residual quantizer, which learns when the last of them is done."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit.codebooks import Codebook
from vqkit.codebooks.stored import StoredCodebook


class StageCodebook(Codebook):
    """What a stage sees of a codebook that all stages share: its codes; what it observes is kept until the last stage is done."""

    def __init__(self, shared: Codebook, starts: bool):
        super().__init__(shared.size, shared.dim)
        # In a tuple, so that it is no submodule here: it belongs to the quantizer of the stages and is saved once.
        self._shared = (shared,)
        self.trained_by_gradient = shared.trained_by_gradient
        self.starts = starts
        self.observed: list[tuple[Tensor, Tensor]] = []

    def forward(self) -> Tensor:
        return self._shared[0]()

    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        self.observed = []
        if self.starts:
            self._shared[0].prepare(latents, valid)

    def observe(self, latents: Tensor, indices: Tensor) -> None:
        self.observed.append((latents, indices))


def share_codebook(stages: Sequence[nn.Module]) -> Codebook:
    """The first stage's codebook, of which every stage gets a view; ValueError where their codebooks do not fit."""
    for place, stage in enumerate(stages):
        book = getattr(stage, "codebook", None)
        if not isinstance(book, Codebook):
            raise ValueError(f"shared_codebook: expected stages with a codebook, got {type(stage).__name__} as quantizers[{place}]")
        if (book.size, book.dim) != (stages[0].codebook.size, stages[0].codebook.dim):
            raise ValueError(
                f"shared_codebook: expected {stages[0].codebook.size} codes of length {stages[0].codebook.dim} as in the first stage, "
                f"got {book.size} of length {book.dim} in quantizers[{place}]"
            )
    shared = stages[0].codebook
    for place, stage in enumerate(stages):
        stage.codebook = StageCodebook(shared, starts=place == 0)
    return shared


def teach(codebook: Codebook, stages: Iterable[nn.Module]) -> None:
    """Let a shared codebook learn from what its stages have observed since the last time, if anything."""
    views = [stage.codebook for stage in stages]
    pairs = [pair for view in views for pair in view.observed]
    for view in views:
        view.observed = []
    if not pairs:
        return None
    together = [torch.cat(part) for part in zip(*pairs)]
    if codebook.trained_by_gradient or not codebook.weighs_updates:
        return codebook.observe(*together)
    # Running means: a step a stage. What replaces dead codes is drawn once, of all stages, by an update that moves nothing else.
    stored = [part for part in codebook.modules() if isinstance(part, StoredCodebook)]
    thresholds = [part.threshold_ema_dead_code for part in stored]
    for part in stored:
        part.threshold_ema_dead_code = 0
    for latents, indices in pairs:
        codebook.observe(latents, indices)
    for part, threshold in zip(stored, thresholds):
        part.threshold_ema_dead_code = threshold
    if any(thresholds) and not any(part._holds_back for part in stored):
        codebook.observe(*together, weight=0.0)
