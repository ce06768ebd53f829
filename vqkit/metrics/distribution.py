"""Sets of pictures compared through a feature network, every number under the name that the network gives it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vqkit.metrics.features import PictureFeatures
from vqkit.metrics.frechet import FeatureStatistics, frechet_distance
from vqkit.metrics.inception_score import inception_score
from vqkit.metrics.kernel_distance import kernel_distance
from vqkit.metrics.precision_recall import precision_recall

_SUBSET, _SPLITS, _NEIGHBOURS = 1000, 10, 3
# Features whose covariance is taken at a time.
_BLOCK = 4096


class PictureSet:
    """The features of pictures, collected batch by batch, and put in one order however they came.

    Args:
        network: gives the features, on the device where it is.

    `add` takes pictures with their numbers; `reduced` returns the set of all ranks. Memory is that of the features, N x D float32.
    """

    def __init__(self, network: PictureFeatures):
        self.network = network
        self._numbers: list[Tensor] = []
        self._pooled: list[Tensor] = []
        self._logits: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._numbers))

    def add(self, pictures: Tensor, numbers: Tensor | None = None) -> None:
        """Add pictures (B, 3, H, W), uint8 or in [-1, 1], on any device; numbers: int64 (B,), their places. Default: after the last.

        Raises ValueError or TypeError where they do not fit; nothing is added then.
        """
        numbers = torch.arange(len(self), len(self) + len(pictures)) if numbers is None else numbers
        if numbers.shape != (len(pictures),):
            raise ValueError(f"numbers: expected ({len(pictures)},), one a picture, got {tuple(numbers.shape)}")
        if not len(pictures):
            return
        device = next(self.network.parameters()).device
        pooled, logits = self.network(pictures.to(device))
        self._numbers.append(numbers.to(device, torch.int64))
        self._pooled.append(pooled)
        if logits is not None:
            self._logits.append(logits)

    @property
    def pooled(self) -> Tensor:
        """(N, D) float32, in the order of the numbers."""
        return self._ordered(self._pooled, self.network.dim)

    @property
    def logits(self) -> Tensor | None:
        """(N, C) float32 in the same order; None where the network has none."""
        return self._ordered(self._logits, 0) if self._logits else None

    @property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the pooled features."""
        found = FeatureStatistics(self.network.dim, next(self.network.parameters()).device)
        for features in self.pooled.split(_BLOCK):
            found.add(features)
        return found

    def reduced(self) -> PictureSet:
        """The set of all ranks' pictures (without torch.distributed, this one)."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        total = PictureSet(self.network)
        device, dim = next(self.network.parameters()).device, self.network.dim
        sizes = torch.tensor([len(self), self._logits[0].shape[1] if self._logits else 0], device=device)
        everyone = [torch.empty_like(sizes) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, sizes)
        counts, classes = zip(*(size.tolist() for size in everyone))
        for mine, into, shape, dtype in ((self._numbers, total._numbers, (), torch.int64), (self._pooled, total._pooled, (dim,), torch.float32),
                                         (self._logits, total._logits, (max(classes),), torch.float32)):
            if shape == (0,):
                continue
            # Gathering needs one shape on all ranks: the shorter are filled up, and cut again.
            sent = torch.zeros(max(counts), *shape, dtype=dtype, device=device)
            if mine:
                sent[: len(self)] = torch.cat(mine)
            found = [torch.empty_like(sent) for _ in everyone]
            dist.all_gather(found, sent)
            into.extend(part[:count] for part, count in zip(found, counts, strict=True))
        return total

    def _ordered(self, parts: list[Tensor], width: int) -> Tensor:
        if not parts:
            return torch.zeros(0, width)
        return torch.cat(parts)[torch.cat(self._numbers).argsort(stable=True)]


def compare_pictures(real: PictureSet, generated: PictureSet) -> dict[str, float]:
    """All that is reported of generated pictures against real ones, by the keys that metrics.json has.

    Over Inception these are `fid`, `kid`, `inception_score`; over a network "net" `fd_net`, `kd_net`, `class_score_net`; and `precision_`,
    `recall_`, `density_` and `coverage_` with the network's name. The kernel distance takes 100 subsets of 1000 pictures, or all
    once where there are less than 1000; the score 10 parts, or one where there are less than 100 pictures; the others three neighbours.
    Precision and the like are left out for less than four pictures of either, and the score where the network has no logits.

    Raises ValueError where the sets are of different networks, or one has less than two pictures.
    """
    network = real.network
    if generated.network is not network:
        raise ValueError(f"real, generated: expected features of one network, got {network.identity} and {generated.network.identity}")
    found = {"frechet_distance": frechet_distance(real.statistics, generated.statistics)}
    pooled, others, smaller = real.pooled, generated.pooled, min(len(real), len(generated))
    found["kernel_distance"] = kernel_distance(pooled, others, subset_size=_SUBSET if smaller >= _SUBSET else None)[0]
    if (logits := generated.logits) is not None:
        found["class_score"] = inception_score(logits, splits=_SPLITS if len(logits) >= 10 * _SPLITS else 1)[0]
    if smaller > _NEIGHBOURS:
        found |= precision_recall(pooled, others, _NEIGHBOURS)._asdict()
    return {network.key(metric): value for metric, value in found.items()}
