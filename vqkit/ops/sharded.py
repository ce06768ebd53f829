"""Nearest-code search over a codebook in shards: every rank of a process group holds a contiguous part of the codes.

Each rank searches its own shard; what travels are candidates: per row k float64 costs and k indices. Every row has one rank
that merges its candidates, so the shape of every collective follows from the sizes of the shards and of the batches alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vqkit.backend import BackendError
from vqkit.ops.nearest import MAX_K, Metric, Precision, closeness_of, scaled, nearest_codes
from vqkit.ops.operator import FLOATS, check_codes, check_rows, check_size
from vqkit.ops.statistics import check_indices

# Values that a block of gathered rows, or of candidates in float64, holds: bounds what is used beside O(N + K / R).
_BLOCK = 1 << 21

_CHOICES = {"dtype": FLOATS, "replicated": (False, True), "metric": ("l2", "cosine"), "precision": ("exact", "fast")}
_ON_EVERY_RANK = {
    "dim": "codes: expected the same last dimension",
    "dtype": "codes: expected the same dtype",
    "replicated": "replicated: expected the same value",
    "k": "k: expected the same value",
    "metric": "metric: expected the same value",
    "precision": "precision: expected the same value",
}


class _Facts(NamedTuple):
    """What a rank tells the others before anything else, as int64; a size of -1 says that its arguments are at fault."""

    size: int
    rows: int = 0
    dim: int = 0
    dtype: int = 0
    replicated: int = 0
    k: int = 0
    metric: int = 0
    precision: int = 0
    # A sum over the bits of replicated rows; the range of the indices to gather.
    checksum: int = 0
    low: int = 0
    high: int = -1


class _Shards(NamedTuple):
    """The group, and the sizes, starts and numbers of rows of its ranks."""

    group: dist.ProcessGroup
    rank: int
    sizes: list[int]
    starts: list[int]
    rows: list[int]


def _several(group: dist.ProcessGroup | None) -> bool:
    """Whether there are several ranks; raises where this process is not one of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    if dist.get_rank(group) < 0:
        raise ValueError("group: expected a process group that this process belongs to, got one without it")
    return dist.get_world_size(group) > 1


def _check_shard(codes: Tensor) -> None:
    """Like ``check_codes``, but a shard may be empty."""
    check_rows("codes", codes)
    check_codes(codes if codes.ndim != 2 or len(codes) else codes.new_empty(1, codes.shape[1]))


def _described(rows: Tensor, codes: Tensor, replicated: bool, **facts) -> _Facts:
    if not isinstance(replicated, bool):
        raise TypeError(f"replicated: expected a bool, got {replicated!r}")
    facts |= {"dtype": codes.dtype, "replicated": replicated}
    encoded = {name: _CHOICES[name].index(value) if name in _CHOICES else value for name, value in facts.items()}
    if replicated:
        bits = rows.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.itemsize])
        encoded["checksum"] = int(bits.sum(dtype=torch.int64))
    return _Facts(size=len(codes), rows=len(rows), dim=codes.shape[1], **encoded)


def _meet(
    group: dist.ProcessGroup | None, tensors: tuple, name: str, describe: Callable[[], _Facts]
) -> tuple[_Shards, list[_Facts]]:
    """Tell all ranks what this one has. What does not fit on one rank, or between them, raises on all of them."""
    group = dist.group.WORLD if group is None else group
    try:
        mine, fault = describe(), None
    except (TypeError, ValueError, BackendError) as error:
        mine, fault = _Facts(size=-1), error
    device = next((tensor.device for tensor in tensors if isinstance(tensor, Tensor)), None)
    told = _from_all(torch.tensor([mine], dtype=torch.int64, device=device), group).tolist()
    if fault is not None:
        raise fault
    everyone = [_Facts(*facts) for facts in told]
    if faulty := [rank for rank, facts in enumerate(everyone) if facts.size < 0]:
        raise RuntimeError(f"group: the arguments of its ranks {faulty} are at fault; the errors raised there say how")
    for fact, expected in _ON_EVERY_RANK.items():
        values = [getattr(facts, fact) for facts in everyone]
        if len(set(values)) > 1:
            raise ValueError(f"{expected} on every rank, got {[_CHOICES[fact][v] if fact in _CHOICES else v for v in values]}")
    sizes, rows = [facts.size for facts in everyone], [facts.rows for facts in everyone]
    if mine.replicated and len(set(rows)) > 1:
        raise ValueError(f"{name}: expected as many rows on every rank, as they are replicated, got {rows}")
    if mine.replicated and len({facts.checksum for facts in everyone}) > 1:
        raise ValueError(f"{name}: expected the same bits on every rank, got others; replicated=False is for each rank's own")
    if not sum(sizes):
        raise ValueError("codes: expected a code on one rank at least, got none")
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    return _Shards(group, dist.get_rank(group), sizes, starts, rows), everyone


def _from_all(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, ...) of every rank -> (R B, ...), in the order of the ranks, bit for bit."""
    gathered = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    # By lists: the call by one tensor has another name in every other version.
    dist.all_gather(list(gathered.view(torch.uint8)), tensor.contiguous().view(torch.uint8), group=group)
    return gathered.flatten(0, 1)


def _to_mergers(answers: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This shard's answers (R B, ...), each rank's rows in turn -> every shard's answers to this rank's rows (R, B, ...)."""
    received, ranks = torch.empty_like(answers), dist.get_world_size(group)
    dist.all_to_all_single(received.view(torch.uint8), answers.contiguous().view(torch.uint8), group=group)
    return received.view(ranks, -1, *answers.shape[1:])


def _ask(
    rows: Tensor, shards: _Shards, replicated: bool, width: int, answer: Callable[[Tensor], Tensor], merge: Callable
) -> Tensor:
    """Every row's answer (N, ...), merged from those of all shards, by blocks of R B rows of ``width`` values.

    answer(rows (R B, ...)) -> (R B, ...), of this shard.  merge(answers (R, B, ...), rows (B, ...)) -> (B, ...).
    Replicated rows are shared out, so that each is merged once, and the merged ones go to all; other rows are merged at home.
    """
    ranks = len(shards.sizes)
    most = -(-len(rows) // ranks) if replicated else max(shards.rows)
    step = max(1, min(most, _BLOCK // (ranks * width)))
    share = ranks * step if replicated else step
    merged = [answer(rows[:0])]
    for number in range(-(-most // step)):
        block = rows[number * share :][:share]
        if len(block) < share:
            block = torch.cat([block, block.new_zeros(share - len(block), *block.shape[1:])])
        mine = block[shards.rank * step :][:step] if replicated else block
        answers = answer(block if replicated else _from_all(block, shards.group))
        found = merge(_to_mergers(answers, shards.group), mine)
        merged.append(_from_all(found, shards.group) if replicated else found)
    return torch.cat(merged)[: len(rows)]


def _costs(rows: Tensor, codes: Tensor, places: Tensor, cosine: bool) -> Tensor:
    """|x - c|^2, or -x . c / |c|, in float64 for the codes at ``places`` (N, k); infinity for a code that is not finite.

    Equal operands give equal bits on every rank: ``places`` has the same width on all of them.
    """
    costs = rows.new_empty(places.shape, dtype=torch.float64)
    step = max(1, _BLOCK // (places.shape[1] * rows.shape[1]))
    for x, chosen, cost in zip(rows.split(step), places.split(step), costs.split(step)):
        x, table = x.double(), codes[chosen].double()
        finite = table.isfinite().all(-1)
        closeness = closeness_of(scaled(x), scaled(table), True) if cosine else closeness_of(x, table, False)
        # A finite code comes before those that are not, however far away.
        cost.copy_((-closeness).clamp(max=torch.finfo(torch.float64).max).where(finite, torch.inf))
    return costs


def _candidates(rows: Tensor, codes: Tensor, k: int, start: int, metric: Metric, search: Callable) -> Tensor:
    """The k nearest of one shard (N, k, 2): the bits of their costs, and their indices; a cost of NaN where there are fewer."""
    places, found = torch.zeros(len(rows), k, dtype=torch.int64, device=rows.device), min(k, len(codes))
    costs = torch.full(places.shape, torch.nan, dtype=torch.float64, device=rows.device)
    if found:
        places[:, :found] = search(rows, codes, found, metric=metric)[1]
        costs[:, :found] = _costs(rows, codes, places, metric == "cosine")[:, :found]
    return torch.stack([costs.view(torch.int64), places + start], -1)


def _nearest(answers: Tensor) -> Tensor:
    """The k nearest of several shards (S, N, k, 2) in ascending order -> (N, k, 2); ties go to the lowest index."""
    k, candidates = answers.shape[2], answers.movedim(0, 1).flatten(1, 2)
    order = candidates[..., 0].contiguous().view(torch.float64).sort(dim=-1, stable=True).indices[:, :k]
    return candidates.gather(1, order[..., None].expand(-1, -1, 2))


def _pass_codes(rows: Tensor, codes: Tensor, shards: _Shards, find: Callable) -> Tensor:
    """The candidates (N, k, 2) of this rank's rows, to which every shard is sent in turn."""
    best = []
    for owner, (size, start) in enumerate(zip(shards.sizes, shards.starts)):
        table = codes if owner == shards.rank else codes.new_empty(size, codes.shape[1])
        if size:
            dist.broadcast(table.view(torch.uint8), dist.get_global_rank(shards.group, owner), group=shards.group)
            best = [_nearest(torch.stack([*best, find(rows, table, start=start)]))]
    return best[0]


def _settled(rows: Tensor, best: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, k) of merged candidates; a row that is not finite gets NaN and 0..k-1."""
    costs, indices = best[..., 0].contiguous().view(torch.float64), best[..., 1]
    distances = costs.where(costs < torch.finfo(torch.float64).max, torch.inf)
    if cosine:
        length = scaled(rows.double()).norm(dim=-1, keepdim=True)
        distances = 1 + distances / length.where(length > 0, 1.0)
    sound = rows.isfinite().all(-1, keepdim=True)
    distances = distances.where(sound, torch.nan).to(torch.promote_types(rows.dtype, torch.float32))
    return distances, indices.where(sound, torch.arange(indices.shape[1], device=rows.device))


def sharded_nearest_codes(
    latents: Tensor,
    codes: Tensor,
    k: int = 1,
    *,
    group: dist.ProcessGroup | None = None,
    metric: Metric = "l2",
    precision: Precision = "exact",
    replicated: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest codes of every latent where each rank of a process group holds a contiguous shard of the codebook.

    The codebook is the shards of ranks 0, 1, ... one after the other; indices count through it. All ranks must call this.

    Args:
        latents: (..., D), as in ``nearest_codes``.
        codes: (K_r, D), the shard of this rank, same dtype and device as the latents. Shards may differ in size and be empty.
        k: 1 <= k <= min(K, 8), K the sum of all K_r.
        group: the process group; None for the default one. Without any, or with one rank, this is ``nearest_codes``.
        metric, precision, backend: as in ``nearest_codes``.
        replicated: True: all ranks hold the same latents, to the bit (a checksum of them is compared). False: each rank has
            latents of its own, of any number, and gets their codes, as in data-parallel training.

    Returns:
        distances: (..., k) and indices: (..., k) on every rank, by the contract of ``nearest_codes`` over all K codes: the
        shards' candidates are compared by float64 scores, ties to the lowest index. Scores that differ by no more than the
        rounding of a float64 sum over D count as equal there and here; which of such codes comes first may differ between the
        two, as between backends. Distances are those scores, rounded once.
        Neither has a gradient.

    Each rank receives, for R ranks: replicated, less than 32 N k bytes, whatever R. Own latents: those of the others, in
    bounded blocks, and 16 (R - 1) N k bytes of candidates; or, where these are more, the other shards, one at a time. Every
    shape follows from the numbers of rows and codes. The memory used is O(N + max K_r), never O(N K). Waits for the device
    to learn those numbers, so it is not for CUDA graphs or torch.compile.

    Raises:
        ValueError, TypeError, BackendError: as in ``nearest_codes``; also what differs between ranks that must not. Where the
            arguments of one rank are at fault, that rank raises this and the others RuntimeError, at once.
        RuntimeError: a rank fails later or never calls: from torch.distributed, after the timeout of the group.

    Source: our own.
    """
    search = partial(nearest_codes, precision=precision, backend=backend)
    if not _several(group):
        check_codes(codes)
        return search(latents, codes, k, metric=metric)

    def describe() -> _Facts:
        _check_shard(codes)
        check_rows("latents", latents, like=("codes", codes))
        check_size("k", k)
        if k > MAX_K:
            raise ValueError(f"k: expected at most {MAX_K}, got {k}")
        # The search of no rows checks the rest.
        rows, table = latents.detach().reshape(-1, latents.shape[-1]), codes if len(codes) else codes.new_zeros(1, codes.shape[1])
        search(rows[:0], table, 1, metric=metric)
        return _described(rows, codes, replicated, k=k, metric=metric, precision=precision)

    shards, _ = _meet(group, (codes, latents), "latents", describe)
    if k > sum(shards.sizes):
        raise ValueError(f"k: expected at most the number of all codes, {sum(shards.sizes)}, got {k}")
    rows, table = latents.detach().reshape(-1, latents.shape[-1]), codes.detach().contiguous()
    find = partial(_candidates, k=k, metric=metric, search=search)
    row_bytes = rows.shape[1] * rows.itemsize
    if not replicated and max(shards.rows) * (row_bytes + 16 * k) > max(shards.sizes) * row_bytes:
        best = _pass_codes(rows, table, shards, find)
    else:
        here = partial(find, codes=table, start=shards.starts[shards.rank])
        best = _ask(rows, shards, replicated, rows.shape[1], here, lambda answers, _: _nearest(answers))
    distances, indices = _settled(rows, best, metric == "cosine")
    return distances.view(*latents.shape[:-1], k), indices.view(*latents.shape[:-1], k)


def gather_sharded_codes(
    indices: Tensor, codes: Tensor, *, group: dist.ProcessGroup | None = None, replicated: bool = True
) -> Tensor:
    """The code vectors at indices of ``sharded_nearest_codes``, from the ranks that hold them: codebook[indices].

    Args:
        indices: (...), int64 in -1..K-1; -1, a masked latent, gets zeros.
        codes: (K_r, D), the shard of this rank, as in ``sharded_nearest_codes``.
        group: the process group; None for the default one. Without any, or with one rank, ``codes`` is the codebook.
        replicated: True: all ranks hold the same indices. False: each rank has its own, of any number.

    Returns:
        vectors: (..., D), in the dtype of the codes, bit for bit; no gradient.

    Each rank receives, for R ranks, 2 N D values (replicated) or the others' indices and R N D values (own), in bounded
    blocks, shaped by N and the K_r alone.

    Raises:
        ValueError, TypeError: types, shapes, dtypes or devices that do not fit; what differs between ranks that must not.
        IndexError: an index of any rank out of range, on all of them.
        RuntimeError: as in ``sharded_nearest_codes``.
    """

    def describe() -> _Facts:
        _check_shard(codes)
        check_indices(indices)
        if indices.device != codes.device:
            raise ValueError(f"indices: expected device {codes.device} as in codes, got {indices.device}")
        low, high = (int(bound) for bound in indices.aminmax()) if indices.numel() else (0, -1)
        return _described(indices.reshape(-1), codes, replicated, low=low, high=high)

    several = _several(group)
    shards, everyone = _meet(group, (codes, indices), "indices", describe) if several else (None, [describe()])
    size, low, high = sum(f.size for f in everyone), min(f.low for f in everyone), max(f.high for f in everyone)
    if low < -1 or high >= size:
        raise IndexError(f"indices: expected -1 <= index < K = {size}, got {low}..{high}")
    rows, table = indices.reshape(-1), codes.detach()
    # One vector at least: what an empty shard answers is sent too, though nobody takes it.
    table = table if len(table) else table.new_zeros(1, table.shape[1])
    start = shards.starts[shards.rank] if several else 0

    def held(rows: Tensor) -> Tensor:
        return table[(rows - start).clamp(0, len(table) - 1)]

    def from_owner(answers: Tensor, rows: Tensor) -> Tensor:
        owners = torch.searchsorted(torch.tensor(shards.starts[1:], device=rows.device), rows, right=True)
        return answers[owners, torch.arange(len(rows), device=rows.device)]

    vectors = _ask(rows, shards, replicated, table.shape[1], held, from_owner) if several else held(rows)
    return vectors.where((rows >= 0)[:, None], 0.0).view(*indices.shape, codes.shape[1])
