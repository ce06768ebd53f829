"""Pictures in batches: decoded once, kept in memory shared by all workers, in an order that is a pure function of the seed.

The training order is one endless stream, a fresh permutation of the split for every epoch. Batch b of rank r is a fixed stretch of the
stream, so a run can start from any step without reading what came before, and two ranks of batch B see what one rank of 2B sees.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.sources import FITS, DataError, Source

_UNREAD, _READY, _BROKEN = 0, 1, 2
_logger = logging.getLogger("training")


class PictureDataset(Dataset):
    """Pictures of one split as uint8 at one resolution.

    Args:
        source: where they come from.
        resolution: side in pixels.
        fit: "crop" cuts the largest centred square, "stretch" squeezes the whole picture.
        memory_budget: bytes. Where all pictures fit they are decoded once and kept, in one array that the worker processes share;
            otherwise each is decoded every time (`kept_in_memory` tells which).

    Asked for a list of (epoch, index) keys it returns (images (B, 3, R, R) uint8, indices (B,) int64), a picture flipped left to right
    by the hash of (flip_seed, epoch, index), or never where flip_seed is None. A picture that cannot be read is named in a warning,
    once, and skipped: where `replace_broken`, the next readable one of the split takes its place, else the batch is shorter.
    """

    # What is kept of a picture.
    bytes_a_pixel = 3

    def __init__(self, source: Source, resolution: int, *, fit: str = "crop", memory_budget: int = 2 << 30,
                 flip_seed: int | None = None, replace_broken: bool = False):
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {FITS}, got {fit!r}")
        if resolution < 1:
            raise ValueError(f"resolution: expected at least 1, got {resolution}")
        self.source, self.resolution, self.fit = source, resolution, fit
        self.flip_seed, self.replace_broken = flip_seed, replace_broken
        self.bytes_needed = len(source) * resolution * resolution * self.bytes_a_pixel
        self.kept_in_memory = self.bytes_needed <= memory_budget
        # RawArray: shared by forked and by spawned workers alike, and not limited by the size of /dev/shm.
        self._states = multiprocessing.RawArray(ctypes.c_uint8, len(source))
        self._cache = multiprocessing.RawArray(ctypes.c_uint8, len(source) * resolution * resolution * 3) if self.kept_in_memory else None

    def __len__(self) -> int:
        return len(self.source)

    def pixels(self, index: int) -> np.ndarray | None:
        """The picture (R, R, 3) uint8, or None where it cannot be read."""
        if self._states[index] == _BROKEN:
            return None
        place = self._place(index)
        if self._states[index] == _READY and place is not None:
            return place
        try:
            decoded = self.source.read(index, self.resolution, self.fit)
        except DataError as broken:
            self._states[index] = _BROKEN
            _logger.warning("skipped a picture that cannot be read: %s", broken)
            return None
        if place is None:
            return decoded
        place[:] = decoded
        self._states[index] = _READY
        return place

    def broken(self) -> list[str]:
        """Names of the pictures found unreadable so far, by any worker."""
        return [self.source.picture_name(int(index)) for index in np.flatnonzero(np.frombuffer(self._states, np.uint8) == _BROKEN)]

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pictures, indices = [], []
        for epoch, wanted in keys:
            index, picture = self._readable(wanted)
            if picture is None:
                continue
            if self.flips(epoch, wanted):
                picture = picture[:, ::-1]
            pictures.append(picture)
            indices.append(index)
        stacked = np.stack(pictures) if pictures else np.empty((0, self.resolution, self.resolution, 3), np.uint8)
        return torch.from_numpy(stacked.transpose(0, 3, 1, 2).copy()), torch.tensor(indices, dtype=torch.int64)

    def flips(self, epoch: int, wanted: int) -> bool:
        """Whether what is shown for this key is mirrored."""
        return self.flip_seed is not None and _flipped(self.flip_seed, epoch, wanted)

    def _readable(self, index: int) -> tuple[int, np.ndarray | None]:
        picture = self.pixels(index)
        if picture is None and self.replace_broken:
            for further in range(1, len(self)):
                picture = self.pixels((index + further) % len(self))
                if picture is not None:
                    return (index + further) % len(self), picture
            raise DataError(f"data: none of the {len(self)} pictures in {self.source.name} can be read")
        return index, picture

    def _place(self, index: int) -> np.ndarray | None:
        if self._cache is None:
            return None
        size = self.resolution * self.resolution * 3
        return np.frombuffer(self._cache, np.uint8, size, index * size).reshape(self.resolution, self.resolution, 3)


def _flipped(seed: int, epoch: int, index: int) -> bool:
    return hashlib.blake2b(f"flip/{seed}/{epoch}/{index}".encode(), digest_size=1).digest()[0] & 1 == 1


class TrainingOrder(Sampler):
    """Batches first .. last - 1 of this rank, each a list of (epoch, index).

    Batch b of all ranks together is positions b * B * world .. (b + 1) * B * world of the stream of permutations; this rank's share is
    its contiguous part. Nothing before `first` is drawn, but for the one permutation it lies in.
    """

    def __init__(self, size: int, batch_size: int, seed: int, *, first: int = 0, last: int, rank: int = 0, world: int = 1):
        if size < 1 or batch_size < 1:
            raise ValueError(f"size, batch_size: expected at least 1, got {size} and {batch_size}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.first, self.last, self.rank, self.world = first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permutation, epoch_of = None, -1
        for batch in range(self.first, self.last):
            start = (batch * self.world + self.rank) * self.batch_size
            keys = []
            for position in range(start, start + self.batch_size):
                epoch, within = divmod(position, self.size)
                if epoch != epoch_of:
                    permutation, epoch_of = self._permutation(epoch), epoch
                keys.append((epoch, int(permutation[within])))
            yield keys

    def _permutation(self, epoch: int) -> Tensor:
        digest = hashlib.blake2b(f"order/{self.seed}/{epoch}".encode(), digest_size=7).digest()
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))


class EvaluationOrder(Sampler):
    """Every picture once over all ranks, in this rank's batches; nothing is repeated to make ranks equal."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1):
        self.batches = [[(0, index) for index in range(start, min(start + batch_size, size))] for start in range(0, size, batch_size)]
        self.batches = self.batches[rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


def load(dataset: PictureDataset, order: TrainingOrder | EvaluationOrder, workers: int, device: torch.device) -> DataLoader:
    """Batches in this order; the number of workers changes nothing but the speed."""
    # Its own generator: a DataLoader otherwise draws from torch's, and a resumed run would no longer be the same bits.
    return DataLoader(dataset, batch_sampler=order, collate_fn=_as_it_is, num_workers=workers, pin_memory=device.type == "cuda",
                      generator=torch.Generator(), prefetch_factor=4 if workers else None, worker_init_fn=_leave_signals_to_the_trainer)


def _leave_signals_to_the_trainer(_worker: int) -> None:
    # Ctrl-C reaches the whole group of processes; the loop still needs its workers for the step that it finishes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def default_workers() -> int:
    """Half of the processors, at most 8 and at least 1: one decodes while the other computes."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """uint8 pictures to float32 in [-1, 1] on the device."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] to uint8, rounded to nearest; the inverse of `to_float`."""
    return images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def _as_it_is(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch
