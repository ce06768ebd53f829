"""A learned codebook whose unused codes move to latents of the batch (CVQ)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.codebooks.ranks import draw_latents, sum_over_ranks, world
from vqkit.codebooks.stored import StoredCodebook
from vqkit.ops import code_counts, nearest_row

# Scores of a chunk of rows with all codes.
_CHUNK = 2**22


class AnchoredCodebook(StoredCodebook):
    """K vectors as an ``nn.Parameter``, trained by gradient; each training step moves a code to a latent the more, the less it is used.

    n_k <- decay n_k + (1 - decay) (share of the batch's latents that chose k);  a_k = exp(-10 K n_k / (1 - decay) - 1e-3)
    code_k <- (1 - a_k) code_k + a_k anchor_k

    Args:
        size, dim: K and the length of a code.
        decay: of the running use ``cluster_size`` (K,), here a share of the latents that starts at 0; less than 1.
        anchor: "closest": the latent nearest to the code. "random": any latent. "probrandom": a latent drawn with probability
            softmax over the latents of -|x - code|^2, or of their cosine similarity. The codes are those before the step.
        first_batch: move codes in the first batch only that has a latent.
        kmeans_init, kmeans_iters: as in ``StoredCodebook``.
        cosine: the quantizer looks at directions only. The codes then start as random unit vectors, else uniformly in (-1/K, 1/K).

    Shares and anchors are those of all ranks, and all ranks hold the same codes; the collectives do not depend on the data, nor does
    a step wait for the device but until the first batch has moved the codes, with ``first_batch``. "probrandom" compares every latent
    with every code, in chunks of rows: memory is O(N + K). Random draws come from torch's default generator. Statistics
    stay in float32.

    Within ``accumulate`` the shares are those of all micro-batches and the anchors come from the last.

    Source: Zheng and Vedaldi 2023 (arXiv 2307.15139), section 3.3, equations 5 to 7. As their code has it: epsilon is 1e-3, n_k
    starts at 0, and latents enter as the quantizer hands them over. Otherwise than there: shares and anchors are over all ranks, and
    "random" draws from the batch alone, not from a pool that keeps earlier latents where a batch has fewer than K.
    """

    trained_by_gradient = True
    weighs_updates = False

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        decay: float = 0.99,
        anchor: Literal["closest", "random", "probrandom"] = "closest",
        first_batch: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        cosine: bool = False,
    ):
        super().__init__(size, dim, decay=decay, kmeans_init=kmeans_init, kmeans_iters=kmeans_iters, cosine=cosine)
        if decay == 1:
            raise ValueError(f"decay: expected 0 <= decay < 1, got {decay}")
        if anchor not in ("closest", "random", "probrandom"):
            raise ValueError(f"anchor: expected 'closest', 'random' or 'probrandom', got {anchor!r}")
        self.anchor = anchor
        self.first_batch = first_batch
        codes = torch.randn(size, dim) if cosine else torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.codes = nn.Parameter(normalize(codes, dim=-1) if cosine else codes)
        self.cluster_size.zero_()
        self.register_buffer("moved", torch.tensor(False))
        # False where ``moved`` is known to be True and no other batch moves the codes. It may lag behind, as ``_awaits_start``.
        self._moves = True

    def forward(self) -> Tensor:
        # A step writes the parameter in place while a backward pass still needs the codes it used.
        return self.codes.clone() if self.training or torch.is_grad_enabled() else self.codes

    @torch.no_grad()
    def observe(self, latents: Tensor, indices: Tensor) -> None:
        counts = code_counts(indices, self.size).to(latents.dtype)
        if self._pending is not None:
            _, pending = self._pending
            pending.add_(counts)
            if self._holds_back:
                return
            counts = pending.to(counts.dtype, copy=True)
            pending.zero_()
        if self._moves:
            search = self._random_anchors if self.anchor == "random" else self._near_anchors
            counts, anchors, found = search(latents, indices >= 0, counts)
        else:
            (counts,) = sum_over_ranks(counts)
        total = counts.sum()
        share = (counts / total.clamp(min=1)).to(self.cluster_size.dtype)
        self.cluster_size.lerp_(share, (1 - self.decay) * (total > 0))
        if self._moves:
            self._move(anchors, found)

    def _move(self, anchors: Tensor, found: Tensor) -> None:
        """Move the codes that have an anchor, found (K,) bool, to it, (K, dim), as their use says."""
        alpha = (-10 * self.size / (1 - self.decay) * self.cluster_size - 1e-3).exp().where(found, 0.0)
        if self.first_batch:
            alpha = alpha.masked_fill(self.moved, 0.0)
        self._write(self.codes.to(anchors.dtype).lerp(anchors, alpha[:, None].to(anchors.dtype)), alpha[:, None] > 0)
        self.moved.logical_or_(found.any())
        if self.first_batch and not torch.compiler.is_compiling():
            self._moves = not bool(self.moved)

    def _random_anchors(self, latents: Tensor, valid: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts over all ranks, a latent of any of them for every code, (K, dim), and where there is one, (K,) bool."""
        counts, rows, drawn = sum_over_ranks(counts, *draw_latents(latents, valid, self.size))
        return counts, rows, drawn > 0

    def _near_anchors(self, latents: Tensor, valid: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.codes.to(latents.dtype)
        if self.anchor == "closest":
            chosen = nearest_row(latents, codes, mask=valid, metric="cosine" if self.cosine else "l2")
            rows = _gathered(latents, chosen)
            weight = _closeness(rows, codes, self.cosine).masked_fill(chosen < 0, -torch.inf)
        else:
            chosen, weight = draw_near_rows(latents, codes, valid, self.cosine)
            rows = _gathered(latents, chosen)
        rank, ranks = world()
        if ranks == 1:
            return counts, rows, chosen >= 0
        # Every rank offers a row a code; the closest wins, or one drawn by what the rows of each rank weigh together.
        offers = weight.new_zeros(ranks, self.size)
        offers[rank] = weight
        noise = torch.empty_like(offers).exponential_().log().neg() * (self.anchor == "probrandom" and rank == 0)
        total, offers, noise = sum_over_ranks(counts.to(weight.dtype), offers, noise)
        winner = (offers + noise).argmax(0)
        (rows,) = sum_over_ranks(rows.where((winner == rank)[:, None], 0.0))
        return total.to(counts.dtype), rows, offers.amax(0) > -torch.inf

    def _restart(self, centres: Tensor, counts: Tensor, start: Tensor) -> None:
        super()._restart(centres, counts / counts.sum().clamp(min=1), start)

    def train(self, mode: bool = True):
        if self.first_batch and not self.moved.is_meta:
            self._moves = not bool(self.moved)
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._moves = True

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, decay={self.decay}, anchor={self.anchor!r}, first_batch={self.first_batch}"


def _gathered(latents: Tensor, rows: Tensor) -> Tensor:
    """latents[rows], zero for -1 and where there are none."""
    if len(latents) == 0:
        return latents.new_zeros(len(rows), latents.shape[1])
    return latents[rows.clamp(min=0)].where(rows[:, None] >= 0, 0.0)


def _closeness(rows: Tensor, codes: Tensor, cosine: bool) -> Tensor:
    """-|x - c|^2, or the cosine, of each code with its own row, (K,) float64."""
    rows, codes = rows.double(), codes.double()
    return (normalize(rows, dim=-1) * normalize(codes, dim=-1)).sum(-1) if cosine else -(rows - codes).square().sum(-1)


# An operator, so that a compiled graph does not hold all its chunks.
@torch.library.custom_op("vqkit::draw_near_rows", mutates_args=())
def draw_near_rows(latents: Tensor, codes: Tensor, valid: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """For every code a row drawn with probability softmax over the valid rows of -|x - c|^2, or of their cosine.

    latents: (N, D).  codes: (K, D), same dtype.  valid: (N,) bool.
    Returns rows (K,) int64, -1 where no row is valid, and the logarithm of the sum of exp of those numbers, up to |c|^2, (K,) float64, by
    which the draws of several ranks compare. One pass over the rows, in chunks, a row drawn in each and kept with the chunk's
    share of the mass so far (reservoir sampling, Chao 1982, Biometrika 69(3)): O(N + K) memory.
    """
    with torch.autocast(latents.device.type, enabled=False):
        return _draw_near_rows(latents, codes, valid, cosine)


def _draw_near_rows(latents: Tensor, codes: Tensor, valid: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    count = len(codes)
    if cosine:
        latents, codes = normalize(latents, dim=-1), normalize(codes, dim=-1)
    else:
        # Distances do not change, and far from the origin they keep their digits.
        centre = codes.mean(0)
        latents, codes = latents - centre, codes - centre
    rows = torch.full((count,), -1, device=latents.device)
    mass = torch.full((count,), -torch.inf, dtype=torch.float64, device=latents.device)
    size = max(1, _CHUNK // count)
    for start in range(0, len(latents), size):
        part = latents[start : start + size]
        scores = codes @ part.T if cosine else torch.addmm(part.square().sum(-1), codes, part.T, beta=-1, alpha=2)  # (K, chunk)
        scores.masked_fill_(~valid[start : start + size], -torch.inf)
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        reached = scores.sub_(top).exp_().cumsum_(-1)
        # The first row that reaches a share in (0, 1] of the chunk's mass; then this chunk's row or that of an earlier one.
        place = torch.searchsorted(reached, reached[:, -1:] * (1 - torch.rand_like(top)))[:, 0]
        own = reached[:, -1].double().log() + top[:, 0]
        mass = torch.logaddexp(mass, own)
        rows = (place + start).where(torch.rand_like(mass) < (own - mass).exp(), rows)
    return rows, mass


@draw_near_rows.register_fake
def _(latents, codes, valid, cosine):
    rows = torch.empty(len(codes), dtype=torch.int64, device=latents.device)
    return rows, torch.empty(len(codes), dtype=torch.float64, device=latents.device)
