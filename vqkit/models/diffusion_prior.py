"""The diffusion prior: codes that are masked and replaced step by step, and a transformer that undoes it.

Source: Gu et al., VQ-Diffusion, arXiv 2111.14822. Its network is told the time by adaptive norms, ours by a learned vector that is added.
"""

from __future__ import annotations

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
class DiffusionPriorConfig:
    """Shape of the transformer and of the diffusion.

    depth, width, heads, dropout: of the blocks.
    times: T, steps of the diffusion.
    mask_share: of the codes that the last time has changed, those that are masked; the others are uniform.
    auxiliary_weight: of the cross-entropy of the clean codes.
    passes: in which a sequence is drawn, at most T; fewer skip times.
    likelihood_draws: times drawn for `log_likelihood`.
    condition_dropout: fraction of training sequences whose condition is left out, for classifier-free guidance.
    """

    depth: int = 8
    width: int = 256
    heads: int = 4
    dropout: float = 0.1
    times: int = 100
    mask_share: float = 0.9
    auxiliary_weight: float = 5e-4
    passes: int = 50
    likelihood_draws: int = 8
    condition_dropout: float = 0.0

    def __post_init__(self):
        for name in ("depth", "width", "heads", "times", "passes", "likelihood_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        if self.passes > self.times:
            raise ValueError(f"passes: expected at most the {self.times} times, got {self.passes}")
        if not 0 < self.mask_share <= 1:
            raise ValueError(f"mask_share: expected 0 < mask_share <= 1, got {self.mask_share}")
        if self.auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight: expected 0 or more, got {self.auxiliary_weight}")


class DiffusionPrior(TokenPrior):
    """x_0 are the codes; x_t keeps a code with a_t, masks it with g_t, and else replaces it by any of the K.

        q(x_t | x_0):  a_t + b_t at x_0,  b_t elsewhere,  g_t at the mask;  a_t + K b_t + g_t = 1,  a_t = 1 - t / T,  a_T = 0
        p(x_s | x_t) = sum_x0 q(x_s | x_t, x0) p(x0 | x_t),  s < t;  p(x0 | x_t) by the network
        loss = T KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)) at a random t, + auxiliary_weight * cross-entropy of x_0

    Every code of a position goes its own way. At time T nothing of x_0 is left, so the sum over all times bounds the likelihood.
    """

    name = "diffusion-prior"
    Config = DiffusionPriorConfig

    def __init__(self, segments: tuple[Segment, ...], settings: DiffusionPriorConfig):
        super().__init__(segments, settings)
        self.network = BidirectionalTransformer(self.layout, settings.depth, settings.width, settings.heads, settings.dropout, settings.times)

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        columns = self.training_columns(tokens)
        some = next(iter(columns.values()))
        times = torch.randint(1, self.settings.times + 1, (len(some),), device=some.device)
        noise = {segment.name: torch.rand((2, *columns[segment.name].shape), device=some.device) for segment in self.layout.predicted}
        bounds, clean = self._bounds(columns, times, noise)
        terms, loss = {}, 0.0
        for name, bound in bounds.items():
            positions = (columns[name] >= 0).any(-1).sum().clamp(min=1)
            terms[name] = bound.sum() * self.settings.times / positions
            loss = loss + terms[name] + self.settings.auxiliary_weight * clean[name].sum() / positions
        return loss, terms

    @torch.no_grad()
    def log_likelihood(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """The lower bound of the diffusion, from `likelihood_draws` times, the same at every call."""
        columns, draws, total = self.layout.columns(tokens), self.settings.likelihood_draws, {}
        generator = torch.Generator().manual_seed(0)
        for draw in range(draws):
            some = next(iter(columns.values()))
            time = 1 + int((draw + 0.5) / draws * self.settings.times)
            noise = {}
            for segment in self.layout.predicted:
                shape = columns[segment.name].shape
                noise[segment.name] = torch.rand((2, 1, *shape[1:]), generator=generator).to(some.device).expand(2, *shape)
            bounds, _ = self._bounds(columns, torch.full((len(some),), time, device=some.device), noise)
            for name, bound in bounds.items():
                total[name] = total.get(name, 0.0) - bound.flatten(1).sum(1) * self.settings.times / draws
        return total

    def _bounds(self, columns: dict[str, Tensor], times: Tensor, noise: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By segment (B, length, S): the KL of one step back from `times`, and the cross-entropy of the clean codes; zero where none is."""
        covered, noised = {}, dict(columns)
        for segment in self.layout.predicted:
            noised[segment.name], covered[segment.name] = self._noised(segment, columns[segment.name], times, noise[segment.name])
        bounds, clean = {}, {}
        logits = self.network(noised, covered, times)
        for segment in self.layout.predicted:
            name, kl, entropies = segment.name, [], []
            for stream, part in enumerate(segment.part_of_stream):
                x0, known = columns[name][..., stream].clamp(min=0), columns[name][..., stream] >= 0
                xt = noised[name][..., stream].clamp(min=0).masked_fill(covered[name][..., stream], segment.sizes[part])
                log_clean = logits[name][stream].float().log_softmax(-1)
                sure = F.one_hot(x0, segment.sizes[part]).float()
                true = self._back(sure, xt, times - 1, times)
                guess = self._back(log_clean.exp(), xt, times - 1, times)
                kl.append((torch.special.xlogy(true, true) - torch.special.xlogy(true, guess.clamp(min=1e-30))).sum(-1) * known)
                entropies.append(-log_clean.gather(-1, x0.unsqueeze(-1)).squeeze(-1) * known)
            bounds[name], clean[name] = torch.stack(kl, -1), torch.stack(entropies, -1)
        return bounds, clean

    def _noised(self, segment: Segment, x0: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_t (B, length, S), where x_t is the mask: any code, and bool True there."""
        keep, mask = (share.view(-1, 1, 1) for share in self._shares(times))
        sizes = torch.tensor([segment.sizes[part] for part in segment.part_of_stream], device=x0.device)
        uniform = (noise[1] * sizes).long().clamp(max=sizes - 1)
        covered = (noise[0] >= 1 - mask) & (x0 >= 0)
        replaced = torch.where((noise[0] >= keep) & (x0 >= 0), uniform, x0)
        return replaced, covered

    def _shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and g_t, (B,) float32."""
        changed = times.float() / self.settings.times
        return 1 - changed, self.settings.mask_share * changed

    def _back(self, clean: Tensor, xt: Tensor, earlier: Tensor, times: Tensor) -> Tensor:
        """p(x_s | x_t), (B, length, K + 1) with the mask last, from p(x_0) (B, length, K) and x_t (B, length), where K is the mask."""
        size = clean.shape[-1]
        (a_s, g_s), (a_t, g_t) = ([share.view(-1, 1, 1) for share in self._shares(moment)] for moment in (earlier, times))
        b_s, b_t = (1 - a_s - g_s) / size, (1 - a_t - g_t) / size
        # from s to t: what was masked stays so, what was kept is kept with a_t / a_s
        a, stays = a_t / a_s.clamp(min=1e-12), (1 - g_t) / (1 - g_s)
        b = (stays - a) / size
        masked = (xt == size).unsqueeze(-1)
        here = F.one_hot(xt, size + 1)[..., :size].float()
        weights = clean / torch.where(masked, g_t, here * a_t + b_t).clamp(min=1e-30)
        total = weights.sum(-1, keepdim=True)
        code = torch.where(masked, 1 - stays, here * a + b) * (weights * a_s + b_s * total)
        mask = torch.where(masked, g_s * total, torch.zeros_like(total))
        found = torch.cat((code, mask), -1)
        return found / found.sum(-1, keepdim=True)

    @torch.no_grad()
    def generate(
        self,
        tokens: dict[str, Tensor],
        sampling: Sampling | dict[str, Sampling] = Sampling(),
        *,
        generator: torch.Generator | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        """`sampling` acts on the distribution of the clean codes."""
        (columns, guided), settings = self.begin(tokens, sampling), self.settings
        wanted = {segment.name: columns[segment.name] < 0 for segment in self.layout.predicted}
        # x_T: masked or uniform
        covered = {}
        for segment in self.layout.predicted:
            name, shape = segment.name, columns[segment.name].shape
            noise = torch.rand((2, *shape), generator=generator, device=columns[name].device)
            blank = torch.zeros_like(columns[name])
            last = torch.full((len(blank),), settings.times, device=blank.device)
            drawn, hidden = self._noised(segment, blank, last, noise)
            columns[name], covered[name] = torch.where(wanted[name], drawn, columns[name]), hidden & wanted[name]
        moments = torch.linspace(settings.times, 0, settings.passes + 1).round().long().tolist()
        for now, earlier in zip(moments, moments[1:]):
            seen = self.without_conditions(columns) if guided else columns
            rows = {name: torch.cat((hidden, hidden)) for name, hidden in covered.items()} if guided else covered
            times = torch.full((len(next(iter(seen.values()))),), now, device=next(iter(seen.values())).device)
            logits = self.network(seen, rows, times)
            for segment in self.layout.predicted:
                self._step_back(segment, logits[segment.name], columns, covered, wanted, sampling_of(sampling, segment), guided,
                                (earlier, now), generator)
            if progress is not None:
                progress(sum(segment.length for segment in self.layout.predicted) // settings.passes)
        return {segment.name: segment.given(columns[segment.name]) for segment in self.layout.segments}

    def _step_back(self, segment: Segment, logits: list[Tensor], columns: dict[str, Tensor], covered: dict[str, Tensor],
                   wanted: dict[str, Tensor], sampling: Sampling, guided: bool, moments: tuple[int, int],
                   generator: torch.Generator | None) -> None:
        """Draw x_s of one segment in place."""
        name = segment.name
        codes, hidden = columns[name].clone(), covered[name].clone()
        for stream, part in enumerate(segment.part_of_stream):
            size, clean = segment.sizes[part], logits[stream].float()
            if guided:
                clean = sampling.guided(clean)
            probabilities = sampling.filtered(clean).softmax(-1)
            xt = columns[name][..., stream].clamp(min=0).masked_fill(covered[name][..., stream], size)
            earlier, now = (torch.full((len(xt),), moment, device=xt.device) for moment in moments)
            step = self._back(probabilities, xt, earlier, now)
            drawn = torch.multinomial(step.flatten(0, 1), 1, generator=generator).view(xt.shape)
            free = wanted[name][..., stream]
            hidden[..., stream] = torch.where(free, drawn == size, hidden[..., stream])
            codes[..., stream] = torch.where(free & (drawn < size), drawn, codes[..., stream])
        columns[name], covered[name] = codes, hidden
