"""The masked prior: all codes at once in a few passes, the surest first.

Source: Chang et al., MaskGIT, arXiv 2202.04200.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.models.bidirectional import BidirectionalTransformer
from vqkit.models.segments import Segment
from vqkit.models.token_prior import TokenPrior, sampling_of
from vqkit.models.token_sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class MaskedPriorConfig:
    """Shape of the transformer and of the decoding.

    depth, width, heads, dropout: of the blocks.
    label_smoothing: of the cross-entropy.
    passes: in which a sequence is drawn; the more, the fewer codes are drawn independently of each other.
    choice_temperature: of the Gumbel noise on the confidence by which codes are kept, which falls to 0 with the passes.
    likelihood_draws: masks drawn for `log_likelihood`.
    condition_dropout: fraction of training sequences whose condition is left out, for classifier-free guidance.
    """

    depth: int = 8
    width: int = 256
    heads: int = 4
    dropout: float = 0.1
    label_smoothing: float = 0.1
    passes: int = 12
    choice_temperature: float = 4.5
    likelihood_draws: int = 8
    condition_dropout: float = 0.0

    def __post_init__(self):
        for name in ("depth", "width", "heads", "passes", "likelihood_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("dropout", "condition_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature: expected 0 or more, got {self.choice_temperature}")


class MaskedPrior(TokenPrior):
    """p(hidden codes | the others), learned for every share of hidden ones.

        training: r ~ U(0, 1), hide ceil(n cos(pi r / 2)) of the n positions of each predicted segment, cross-entropy of the hidden codes
        drawing: in pass t of T draw all hidden codes, keep the surest, hide floor(n cos(pi t / 2 T)) again

    All codes of a position are hidden and drawn together, independently of each other. A text drawn by it ends at its end token; what was
    drawn behind it is dropped (ours: the paper's sequences have one length).
    """

    name = "masked-prior"
    Config = MaskedPriorConfig

    def __init__(self, segments: tuple[Segment, ...], settings: MaskedPriorConfig):
        super().__init__(segments, settings)
        self.network = BidirectionalTransformer(self.layout, settings.depth, settings.width, settings.heads, settings.dropout)

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        columns = self.training_columns(tokens)
        hidden = {}
        for segment in self.layout.predicted:
            known = (columns[segment.name] >= 0).any(-1)
            rate = torch.cos(math.pi / 2 * torch.rand(len(known), 1, device=known.device))
            hidden[segment.name] = _hide(known, torch.ceil(rate * known.sum(1, keepdim=True)), torch.rand(known.shape, device=known.device))
        losses = self._cross_entropies(columns, hidden, self.settings.label_smoothing)
        terms = {name: loss.sum() / hidden[name].sum().clamp(min=1) for name, loss in losses.items()}
        return sum(terms.values()), terms

    @torch.no_grad()
    def log_likelihood(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """A lower bound, that of drawing the positions one by one in a random order (Hoogeboom et al., arXiv 2110.02037), estimated from
        `likelihood_draws` masks that are the same at every call. Other predicted segments are given."""
        columns, found = self.layout.columns(tokens), {}
        draws = self.settings.likelihood_draws
        for segment in self.layout.predicted:
            name, known = segment.name, (columns[segment.name] >= 0).any(-1)
            count = known.sum(1, keepdim=True)
            noise = torch.rand((draws, *known.shape[1:]), generator=torch.Generator().manual_seed(0)).to(known.device)
            total = torch.zeros(len(known), device=known.device)
            for draw in range(draws):
                # as many hidden as positions that are still to come: each number equally often
                hide = torch.ceil((draw + 0.5) / draws * count).clamp(min=1)
                hidden = {other.name: torch.zeros_like(columns[other.name][..., 0], dtype=torch.bool) for other in self.layout.predicted}
                hidden[name] = _hide(known, hide, noise[draw].expand(known.shape))
                losses = self._cross_entropies(columns, hidden)[name]
                total -= losses.flatten(1).sum(1) * (count / hide).squeeze(1) / draws
            found[name] = total
        return found

    def _cross_entropies(self, columns: dict[str, Tensor], hidden: dict[str, Tensor], smoothing: float = 0.0) -> dict[str, Tensor]:
        """(B, length) summed over the codes of a position, zero where it is not hidden."""
        covered = {name: rows.unsqueeze(-1).expand_as(columns[name]) for name, rows in hidden.items()}
        found = {}
        for name, logits in self.network(columns, covered).items():
            per_code = [F.cross_entropy(stream.float().flatten(0, 1), columns[name][..., number].flatten(), ignore_index=-1, reduction="none",
                                        label_smoothing=smoothing) for number, stream in enumerate(logits)]
            found[name] = sum(per_code).view(hidden[name].shape) * hidden[name]
        return found

    @torch.no_grad()
    def generate(
        self,
        tokens: dict[str, Tensor],
        sampling: Sampling | dict[str, Sampling] = Sampling(),
        *,
        generator: torch.Generator | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        (columns, guided), passes = self.begin(tokens, sampling), self.settings.passes
        hidden = {segment.name: (columns[segment.name] < 0).any(-1) for segment in self.layout.predicted}
        unknown = {name: rows.sum(1, keepdim=True) for name, rows in hidden.items()}
        for number in range(1, passes + 1):
            covered = {name: rows.unsqueeze(-1).expand_as(columns[name]) & (columns[name] < 0) for name, rows in hidden.items()}
            seen = self.without_conditions(columns) if guided else columns
            logits = self.network(seen, {name: torch.cat((rows, rows)) for name, rows in covered.items()} if guided else covered)
            left = math.cos(math.pi / 2 * number / passes)
            for segment in self.layout.predicted:
                name = segment.name
                drawn, confidence = _draw(logits[name], columns[name], sampling_of(sampling, segment), guided, generator)
                noise = -torch.log(-torch.log(torch.rand(confidence.shape, generator=generator, device=confidence.device).clamp(1e-9, 1 - 1e-7)))
                confidence = confidence + self.settings.choice_temperature * (1 - number / passes) * noise
                # the least sure stay hidden; what was known or is kept already is not asked again
                stay = torch.floor(left * unknown[name]) if number < passes else torch.zeros_like(unknown[name])
                again = _hide(hidden[name], stay, confidence)
                kept = (hidden[name] & ~again).unsqueeze(-1)
                if progress is not None:
                    progress(int((hidden[name] & ~again).any(0).sum()))
                columns[name] = torch.where(kept, drawn, columns[name])
                hidden[name] = again
        return {segment.name: segment.given(self._ended(segment, columns[segment.name])) for segment in self.layout.segments}

    def _ended(self, segment: Segment, columns: Tensor) -> Tensor:
        if segment.end is None or not segment.predicted:
            return columns
        ends = (columns == segment.end).any(-1).long()
        return columns.masked_fill((ends.cumsum(1) - ends > 0).unsqueeze(-1), -1)


def _hide(candidates: Tensor, count: Tensor, priority: Tensor) -> Tensor:
    """bool (B, T): of the candidates of each row the `count` (B, 1) of lowest priority."""
    ranks = priority.masked_fill(~candidates, torch.inf).argsort(1).argsort(1)
    return candidates & (ranks < count)


def _draw(logits: list[Tensor], known: Tensor, sampling: Sampling, guided: bool,
          generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Codes (B, length, S) and the sum of the logarithms of their probabilities (B, length); known codes are kept."""
    drawn, confidence = [], 0.0
    for number, stream in enumerate(logits):
        stream = stream.float()
        if guided:
            stream = sampling.guided(stream)
        token = sampling.draw(stream, generator)
        drawn.append(torch.where(known[..., number] < 0, token, known[..., number]))
        confidence = confidence + stream.log_softmax(-1).gather(-1, drawn[-1].unsqueeze(-1)).squeeze(-1)
    return torch.stack(drawn, -1), confidence
