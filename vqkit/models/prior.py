"""The autoregressive prior: a decoder-only transformer that continues a sequence of segments token by token.

Sources: Esser et al., Taming Transformers, arXiv 2012.09841, section 3.2; Yu et al., VIM, arXiv 2110.04627, section 3.3. The branches are
those of Zhang et al., VQCT, arXiv 2403.10071; the codes of a position one after the other those of Lee et al., RQ-VAE, arXiv 2203.01941.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.models.segments import ABSENT, Segment
from vqkit.models.token_prior import TokenEmbedding, TokenPrior, initialize, sampling_of, token_heads
from vqkit.models.token_sampling import Sampling
from vqkit.nn.transformer import KeyValueCache, TransformerBlock

CODES = ("branches", "depth")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Shape of the transformer.

    depth, width, heads: blocks, their width, attention heads.
    dropout: of attention weights, of what each block adds, and of the embedded tokens.
    codes: how a position with several codes is predicted. "branches" (VQCT): the last quarter of the blocks is there once for each part,
        and the codes of a position are drawn independently of each other. "depth" (RQ-VAE): a second, small transformer of `depth_blocks`
        blocks over the codes of the position, each of which sees those before it. Nothing differs where a position holds one code.
    condition_dropout: fraction of training sequences whose condition is left out, for classifier-free guidance.
    """

    depth: int = 8
    width: int = 256
    heads: int = 4
    dropout: float = 0.1
    codes: str = "branches"
    depth_blocks: int = 2
    condition_dropout: float = 0.0

    def __post_init__(self):
        for name in ("depth", "width", "heads", "depth_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        if self.codes not in CODES:
            raise ValueError(f"codes: expected one of {', '.join(CODES)}, got {self.codes!r}")


class Prior(TokenPrior):
    """p(sequence) = prod_t p(x_t | x_<t), a causal transformer over all segments.

        state_t = blocks([start, x_1, ..., x_t-1]);  logits_t = W_segment norm(state_t)
        loss = sum over predicted segments, mean over their positions, of the sum over the position's codes of the cross-entropy

    All positions attend to all before them, conditions too. Every code of a position has a head of its own.
    """

    name = "prior"
    Config = PriorConfig

    def __init__(self, segments: tuple[Segment, ...], settings: PriorConfig):
        super().__init__(segments, settings)
        width = settings.width
        self.embedding = TokenEmbedding(self.layout, width)
        self.start = nn.Parameter(torch.empty(1, 1, width).normal_(0.0, 0.02))
        self.dropout = nn.Dropout(settings.dropout)
        parts = max(len(segment.sizes) for segment in self.layout.predicted) if settings.codes == "branches" else 1
        # a single branch is simply the end of the trunk
        own = max(1, settings.depth // 4) if parts > 1 else 0
        self.trunk = self._blocks(settings.depth - own)
        self.branches = nn.ModuleList(self._blocks(own) for _ in range(parts))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(parts))
        self.heads = token_heads(self.layout, width)
        several = any(segment.streams > 1 for segment in self.layout.predicted)
        self.codes = _CodeTransformer(self.layout.predicted, settings) if settings.codes == "depth" and several else None
        self.apply(initialize)

    def _blocks(self, count: int) -> nn.ModuleList:
        settings = self.settings
        return nn.ModuleList(TransformerBlock(settings.width, settings.heads, causal=True, dropout=settings.dropout) for _ in range(count))

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        columns = self.training_columns(tokens)
        terms = {}
        for name, losses in self._cross_entropies(columns).items():
            known = columns[name] >= 0
            terms[name] = losses.sum() / known.any(-1).sum().clamp(min=1)
        return sum(terms.values()), terms

    @torch.no_grad()
    def log_likelihood(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exact, but for "branches", where the codes of a position are independent given those before it."""
        found = self._cross_entropies(self.layout.columns(tokens))
        return {name: -losses.flatten(1).sum(1) for name, losses in found.items()}

    @torch.no_grad()
    def cross_log_likelihood(self, conditions: dict[str, Tensor], continued: Tensor, batch_size: int = 64) -> Tensor:
        """log p of each of T continuations after each of P conditions, float32 (P, T) in nats: `log_likelihood` of all pairs.

        conditions: the tokens of all segments but the last, the only predicted one, (P, length[, S]).
        continued: the tokens of the last, (T, length[, S]).  batch_size: continuations at once.
        A condition is read once for all its continuations. Raises ValueError for another layout.
        """
        *given, segment = self.layout.segments
        if not segment.predicted or any(other.predicted for other in given):
            raise ValueError(f"segments: expected one that is predicted, the last, got {', '.join(part.name for part in self.layout.predicted)}")
        columns, found = segment.columns(continued), []
        for number in range(len(next(iter(conditions.values())))):
            reader = _Reader(self, guided=False, cached=True)
            first = self.layout.columns({name: tokens[number : number + 1] for name, tokens in conditions.items()}, "absent")
            before = reader.states(first, self.layout.spans[segment.name].start)
            found.append(torch.cat([self._continued(reader.repeated(len(part)), before, segment, part) for part in columns.split(batch_size)]))
        return torch.stack(found)

    def _continued(self, reader: _Reader, before: list[Tensor], segment: Segment, columns: Tensor) -> Tensor:
        """log p (B,) of a segment's columns after what the reader has read; `before`: the branches' states (1, width) of the last of that."""
        states = [state.expand(len(columns), -1).unsqueeze(1) for state in before]
        if segment.length > 1:
            rest = reader.read_on(self.embedding.embed(segment, columns[:, :-1]))
            states = [torch.cat(pair, 1) for pair in zip(states, rest, strict=True)]
        return -self._losses(segment, states, columns).flatten(1).sum(1)

    @torch.no_grad()
    def states(self, tokens: dict[str, Tensor], block: int, segment: str) -> Tensor:
        """The states (B, length, width) that the `block`-th block of the trunk, counted from 1, gives for a segment's own tokens."""
        if not 1 <= block <= len(self.trunk):
            raise ValueError(f"block: expected 1 .. {len(self.trunk)}, got {block}")
        x = self._embedded(self.layout.columns(tokens, "absent"), whole=True)
        for layer in self.trunk[:block]:
            x = layer(x)
        # after the start vector: the state at a token has seen the token
        return x[:, 1:][:, self.layout.spans[segment]]

    def _embedded(self, columns: dict[str, Tensor], whole: bool = False) -> Tensor:
        x = self.embedding(columns)
        start = self.start.expand(len(x), -1, -1).to(x.dtype)
        # the last token is predicted and followed by nothing
        return self.dropout(torch.cat((start, x if whole else x[:, :-1]), 1))

    def _cross_entropies(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, length, S) of each predicted segment, zero where there is no token."""
        x = self._embedded(columns)
        for block in self.trunk:
            x = block(x)
        states = [self._branch(part, x) for part in range(len(self.branches))]
        return {segment.name: self._losses(segment, [state[:, self.layout.spans[segment.name]] for state in states], columns[segment.name])
                for segment in self.layout.predicted}

    def _branch(self, part: int, x: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        for block, cache in zip(self.branches[part], caches or [None] * len(self.branches[part]), strict=True):
            x = block(x, cache=cache)
        return self.norms[part](x)

    def _losses(self, segment: Segment, states: list[Tensor], columns: Tensor) -> Tensor:
        if self.codes is not None and segment.streams > 1:
            states = self.codes(segment, states[0], columns)
        losses = []
        for stream, part in enumerate(segment.part_of_stream):
            logits = self._logits(segment, states, stream, part)
            losses.append(F.cross_entropy(logits.float().flatten(0, -2), columns[..., stream].flatten(), ignore_index=ABSENT,
                                          reduction="none").view(columns.shape[:2]))
        return torch.stack(losses, -1)

    def _logits(self, segment: Segment, states: list[Tensor], stream: int, part: int) -> Tensor:
        """From the states of the branches, or, by "depth", of the streams."""
        if self.codes is not None and segment.streams > 1:
            state = states[stream]
        else:
            state = states[part] if len(segment.sizes) > 1 and len(states) > 1 else states[0]
        return self.heads[segment.name][stream](state)

    @torch.no_grad()
    def generate(
        self,
        tokens: dict[str, Tensor],
        sampling: Sampling | dict[str, Sampling] = Sampling(),
        *,
        generator: torch.Generator | None = None,
        progress: Callable[[int], None] | None = None,
        cached: bool = True,
    ) -> dict[str, Tensor]:
        """As `TokenPrior.generate`; nothing is drawn before the first unknown position of a predicted segment.

        cached: False computes the whole sequence anew for each position, which gives the same and is slow: for comparison.
        """
        columns, guided = self.begin(tokens, sampling)
        reader = _Reader(self, guided, cached)
        for segment in self.layout.predicted:
            found = columns[segment.name].clone()
            columns[segment.name] = found
            wanted = found < 0
            ended = torch.zeros(len(found), dtype=torch.bool, device=found.device)
            for place in range(segment.length):
                unknown = wanted[:, place].any(-1)
                if bool((unknown & ~ended).any()):
                    states = reader.states(columns, self.layout.spans[segment.name].start + place)
                    drawn = self._draw(segment, states, found[:, place], sampling_of(sampling, segment), guided, generator)
                    found[:, place] = torch.where((unknown & ~ended).unsqueeze(-1), drawn, found[:, place])
                if segment.end is not None:
                    ended = ended | (found[:, place, 0] == segment.end)
                if progress is not None:
                    progress(1)
        return {segment.name: segment.given(columns[segment.name]) for segment in self.layout.segments}

    def _draw(self, segment: Segment, states: list[Tensor], known: Tensor, sampling: Sampling, guided: bool,
              generator: torch.Generator | None) -> Tensor:
        """One position's codes (B, S) from the branches' states (B or 2 B, width); known ones (>= 0) are kept."""
        drawn = known.clone()
        for stream, part in enumerate(segment.part_of_stream):
            if self.codes is not None and segment.streams > 1:
                before = drawn.repeat(2, 1) if guided else drawn
                states_here = [state[:, 0] for state in self.codes(segment, states[0].unsqueeze(1), before.unsqueeze(1))]
            else:
                states_here = states
            logits = self._logits(segment, states_here, stream, part).float()
            if guided:
                logits = sampling.guided(logits)
            token = sampling.draw(logits, generator)
            drawn[:, stream] = torch.where(known[:, stream] < 0, token, known[:, stream])
        return drawn


class _Reader:
    """States of the position that is to be drawn next, from all tokens before it; what was read once is kept."""

    def __init__(self, prior: Prior, guided: bool, cached: bool):
        self.prior, self.guided, self.cached = prior, guided, cached
        length = prior.layout.length
        self.trunk = [KeyValueCache(length) for _ in prior.trunk]
        self.branches = [[KeyValueCache(length) for _ in branch] for branch in prior.branches]
        self.read = 0

    def states(self, columns: dict[str, Tensor], position: int) -> list[Tensor]:
        """Every branch's state (B or 2 B, width) that predicts `position`."""
        if self.guided:
            columns = self.prior.without_conditions(columns)
        first = self.read if self.cached else 0
        found = [states[:, -1] for states in self.read_on(self._between(columns, first, position + 1))]
        self.read = position + 1
        return found

    def read_on(self, x: Tensor) -> list[Tensor]:
        """Every branch's states (B, t, width) at the embedded inputs (B, t, width) that come next."""
        prior, x = self.prior, self.prior.dropout(x)
        for block, cache in zip(prior.trunk, self.trunk, strict=True):
            x = block(x, cache=cache if self.cached else None)
        return [prior._branch(part, x, self.branches[part] if self.cached else None) for part in range(len(prior.branches))]

    def repeated(self, batch: int) -> _Reader:
        """What was read of one sequence as the beginning of a batch of sequences."""
        copied = _Reader(self.prior, self.guided, self.cached)
        copied.read = self.read
        copied.trunk = [cache.repeated(batch) for cache in self.trunk]
        copied.branches = [[cache.repeated(batch) for cache in branch] for branch in self.branches]
        return copied

    def _between(self, columns: dict[str, Tensor], first: int, last: int) -> Tensor:
        """Embedded inputs first .. last - 1, where input 0 is the start and input t the token t - 1."""
        prior, pieces = self.prior, []
        if first == 0:
            some = next(iter(columns.values()))
            pieces.append(prior.start.expand(len(some), -1, -1))
        for segment in prior.layout.segments:
            span = prior.layout.spans[segment.name]
            begin, end = max(first - 1, span.start), min(last - 1, span.stop)
            if begin < end:
                columns_here = columns[segment.name][:, begin - span.start : end - span.start]
                pieces.append(prior.embedding.embed(segment, columns_here, begin - span.start))
        return torch.cat(pieces, 1)


class _CodeTransformer(nn.Module):
    """The codes of one position, each from the position's state and the codes before it (RQ-VAE, section 3.2.2)."""

    def __init__(self, segments: tuple[Segment, ...], settings: PriorConfig):
        super().__init__()
        width = settings.width
        several = [segment for segment in segments if segment.streams > 1]
        self.tables = nn.ModuleDict({segment.name: nn.ModuleList(nn.Embedding(size + 1, width) for size in segment.sizes)
                                     for segment in several})
        self.places = nn.ParameterDict({segment.name: nn.Parameter(torch.empty(segment.streams, width).normal_(0.0, 0.02))
                                        for segment in several})
        self.blocks = nn.ModuleList(TransformerBlock(width, settings.heads, causal=True, dropout=settings.dropout)
                                    for _ in range(settings.depth_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, segment: Segment, state: Tensor, columns: Tensor) -> list[Tensor]:
        """State (B, t, width) and codes (B, t, S) to S states (B, t, width); the s-th has seen codes 1 .. s - 1."""
        tables = self.tables[segment.name]
        inputs = [state]
        for stream, part in enumerate(segment.part_of_stream[:-1]):
            tokens, table = columns[..., stream], tables[part]
            # sums so far, as the partial sums of a residual quantizer
            inputs.append(inputs[-1] + table(torch.where(tokens < 0, table.num_embeddings - 1, tokens)))
        x = torch.stack(inputs, 2) + self.places[segment.name]
        x = x.flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return list(self.norm(x).unflatten(0, state.shape[:2]).unbind(2))
