"""Adaptive dynamic quantization (ADQ): every picture chooses between many short codes and few long ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.ops.statistics import check_range
from vqkit.quantizers.layout import feature_rows, project_rows
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer


class AdaptiveQuantizer(nn.Module):
    """Several quantizers whose codebooks hold equally many numbers, of which attention picks one for each picture.

    N_i = capacity / D_i;  s_i = sum over the positions l of softmax_l(query_i . x_l / sqrt(D)) value_i . x_l + b_i
    training: i* = argmax (s_i + Gumbel noise), with the gradient of softmax((s + noise) / temperature);  eval: i* = argmax s_i
    loss = commitment_weight * mean (project_in_i*(x) - sg q)^2

    Args:
        dim: D, size of the feature dimension of the input.
        capacity: N_i D_i, numbers in each codebook.
        code_dims: D_i, length of a code of each candidate; divisors of ``capacity``. A linear layer in and one out join it to ``dim``
            where they differ.
        temperature: see the formula; an attribute that may be changed at any time.
        decay, threshold_ema_dead_code: of the candidates' codebooks, which follow running means; see ``StoredCodebook``.
        commitment_weight: see the formula.
        channel_first: the input is (B, D, *spatial) instead of (B, ..., D).

    The first dimension of ``x`` counts the pictures, all between it and D are positions of one; rows of an (N, D) input choose for
    themselves. Indices number the codes of all candidates in a row, N_1 + N_2 + ... of them, so that an index says which candidate it
    belongs to, and all that works with one codebook works with these.

    A candidate learns, codes and projections, from the pictures that chose it; the gradient to the scores compares its output with what
    the others would have given, without teaching them. Training so searches every codebook twice.
    A masked row, or one that holds NaN or infinity, has output 0 and index -1 and takes no part in scores, losses or gradients.
    Random draws come from torch's default generator of the device. Raises ValueError for arguments that do not fit.

    Source: Chen et al. 2024 (arXiv 2407.04939), section 3.2: N D constant, attention over the flattened latents, Gumbel-softmax, moving
    averages. Our readings: the lengths; a learned query a candidate in the place of attention between all positions, whose memory grows
    with their square; the projections; who learns from whom.
    """

    def __init__(
        self,
        dim: int,
        capacity: int,
        *,
        code_dims: Sequence[int] = (8, 16, 32, 64, 128),
        temperature: float = 1.0,
        decay: float = 0.99,
        threshold_ema_dead_code: float = 0,
        commitment_weight: float = 0.25,
        channel_first: bool = False,
    ):
        super().__init__()
        if not code_dims or min(code_dims) < 1 or any(capacity % code_dim for code_dim in code_dims):
            raise ValueError(f"code_dims: expected divisors of capacity = {capacity}, at least one, got {tuple(code_dims)}")
        if dim < 1 or capacity < 1:
            raise ValueError(f"dim, capacity: expected at least 1, got {dim} and {capacity}")
        if temperature <= 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        self.dim = dim
        self.capacity = capacity
        self.code_dims = tuple(code_dims)
        self.temperature = temperature
        self.commitment_weight = commitment_weight
        self.channel_first = channel_first
        options = {"decay": decay, "threshold_ema_dead_code": threshold_ema_dead_code}
        self.candidates = nn.ModuleList(Quantizer(dim, capacity // width, codebook_dim=width, **options) for width in code_dims)
        # Where a picture is looked at by each candidate, and what is seen there.
        self.query = nn.Linear(dim, len(code_dims), bias=False)
        self.value = nn.Linear(dim, len(code_dims))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each candidate."""
        return tuple(candidate.codebook_size for candidate in self.candidates)

    @property
    def codebook_size(self) -> int:
        """Codes of all candidates together."""
        return sum(self.sizes)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)

    @property
    def selections(self) -> tuple[int, ...]:
        return (1,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``x``; in training mode the chosen candidates learn.

        x: (B, ..., D), or (B, D, *spatial) with channel_first.  mask: bool, shape of ``x`` without D; False leaves a row out.
        Returns ``Quantized``: quantized as ``x``; indices (*x without D); losses "commitment"; counts over all candidates' codes.
        Raises ValueError for an ``x`` or ``mask`` that does not fit; nothing has changed then.
        """
        rows, valid = self._rows(x, mask)
        scores = self._scores(rows, valid)
        if self.training:
            scores = scores - torch.empty_like(scores).exponential_().log()
        masks = self._masks(scores.argmax(-1), valid)
        # Before any of them learns: all of a step sees the same codes.
        others = self._unchosen(rows, valid, masks) if self.training else []
        found = [candidate(rows, valid & mine) for candidate, mine in zip(self.candidates, masks)]
        quantized = sum(result.quantized for result in found)
        if self.training:
            outputs = [quantized.detach().where(mine[..., None], other) for mine, other in zip(masks, others)]
            quantized = quantized + self._score_gradient(scores, outputs).where(valid[..., None], 0.0)
        # The mean over all rows of the batch of what each of them commits to.
        shares = torch.stack([result.counts.sum() for result in found]) / valid.sum().clamp(min=1)
        commitment = sum(share * result.losses["commitment"] for share, result in zip(shares, found))
        counts = torch.cat([result.counts for result in found])
        output = quantized.movedim(-1, 1) if self.channel_first else quantized
        indices = self._numbered([result.indices for result in found])
        return Quantized(output, indices, self.commitment_weight * commitment, {"commitment": commitment}, counts)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns in eval mode."""
        rows, valid = self._rows(x, mask)
        masks = self._masks(self._scores(rows, valid).argmax(-1), valid)
        return self._numbered([candidate.encode(rows, valid & mine) for candidate, mine in zip(self.candidates, masks)])

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, in the layout of ``x``; -1 gives a zero vector. No gradient.

        indices: as ``encode`` returns them; those of one picture need not be of one candidate.  dtype: that of ``x``. Default: the
        dtype of the module. Raises IndexError for an index that does not fit (on the CPU).
        """
        check_range(indices, self.codebook_size, "codebook_size")
        dtype = self.query.weight.dtype if dtype is None else dtype
        vectors, first = [], 0
        for candidate, size in zip(self.candidates, self.sizes):
            own = indices - first
            vectors.append(candidate.decode(own.where((own >= 0) & (own < size), -1), dtype=dtype))
            first += size
        output = sum(vectors)
        return output.movedim(-1, 1) if self.channel_first else output

    @torch.no_grad()
    def choose(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The candidate that eval mode picks for each picture, (B,) int64."""
        return self._scores(*self._rows(x, mask)).argmax(-1)

    def _rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, valid = feature_rows(x, mask, self.dim, self.channel_first)
        if rows.ndim < 2:
            raise ValueError(f"x: expected a first dimension that counts the pictures, got {tuple(x.shape)}")
        return rows, valid

    def _scores(self, rows: Tensor, valid: Tensor) -> Tensor:
        """(B, candidates), float32 or better; zero for a picture without a valid row."""
        pictures = rows.shape[0], rows.shape[1:-1].numel()
        queries, _ = project_rows(self.query, rows, valid)
        values, valid = project_rows(self.value, rows, valid)
        dtype = torch.promote_types(values.dtype, torch.float32)
        queries, values = (part.reshape(*pictures, len(self.candidates)).to(dtype) for part in (queries, values))
        valid = valid.reshape(*pictures, 1)
        # The least finite number, not infinity: a picture without a valid row must not divide zero by zero.
        attention = (queries / self.dim**0.5).masked_fill(~valid, torch.finfo(dtype).min).softmax(1)
        return (attention * values).where(valid, 0.0).sum(1)

    def _masks(self, choice: Tensor, valid: Tensor) -> list[Tensor]:
        """For each candidate, which pictures chose it, to be joined with ``valid``."""
        choice = choice.view(-1, *(1,) * (valid.ndim - 1))
        return [choice == number for number in range(len(self.candidates))]

    @torch.no_grad()
    def _unchosen(self, rows: Tensor, valid: Tensor, masks: list[Tensor]) -> list[Tensor]:
        """What each candidate would have given the pictures that chose another."""
        return [c.decode(c.encode(rows, valid & ~mine), dtype=rows.dtype) for c, mine in zip(self.candidates, masks)]

    def _score_gradient(self, scores: Tensor, outputs: list[Tensor]) -> Tensor:
        """Zeros that carry the gradient of the mixture of all candidates' outputs to the scores."""
        weights = (scores / self.temperature).softmax(-1).to(outputs[0].dtype)
        mixture = sum(weight.view(-1, *(1,) * (o.ndim - 1)) * o for weight, o in zip(weights.unbind(-1), outputs))
        return mixture - mixture.detach()

    def _numbered(self, found: list[Tensor]) -> Tensor:
        """Indices of all candidates, each -1 where another was chosen, as numbers among all codes."""
        result, first = torch.full_like(found[0], -1), 0
        for indices, size in zip(found, self.sizes):
            result = torch.where(indices >= 0, indices + first, result)
            first += size
        return result

    def extra_repr(self) -> str:
        return f"dim={self.dim}, capacity={self.capacity}, code_dims={self.code_dims}, channel_first={self.channel_first}"
