"""Pictures with the class of every pixel, for models that learn from masks."""

from __future__ import annotations

import ctypes
import multiprocessing

import numpy as np
import torch
from torch import Tensor

from training.data.batches import PictureDataset
from training.data.sources import DataError, Source


class MaskedPictureDataset(PictureDataset):
    """A `PictureDataset` that also returns masks, cut, mirrored, replaced and kept in memory as the pictures are.

    Args:
        classes: C; masks have classes 0..C-1.
        unlabelled: a number in the masks that says nothing of a pixel; None where every pixel has a class.
        Others: those of `PictureDataset`, which always replaces what is broken here.

    Asked for (epoch, index) keys it returns (images, indices, masks (B, R, R) int16), -1 for unlabelled pixels. Order and pictures are
    those of `PictureDataset`. Raises DataError naming the picture, the first one at once, where it has no mask, one of another
    shape, or one with a class out of range.
    """

    bytes_a_pixel = 4

    def __init__(self, source: Source, resolution: int, *, classes: int, unlabelled: int | None = None, **pictures):
        super().__init__(source, resolution, replace_broken=True, **pictures)
        self.classes, self.unlabelled = classes, unlabelled
        self._ready = multiprocessing.RawArray(ctypes.c_uint8, len(source))
        self._masks = multiprocessing.RawArray(ctypes.c_uint8, len(source) * resolution * resolution) if self.kept_in_memory else None
        self.mask(self._readable(0)[0])

    def mask(self, index: int) -> np.ndarray:
        """The mask (R, R) uint8 as it is stored."""
        place = self._mask_place(index)
        if self._ready[index] and place is not None:
            return place
        mask = self.source.read_mask(index, self.resolution, self.fit)
        self._check(index, mask)
        if place is None:
            return mask
        place[:] = mask
        self._ready[index] = 1
        return place

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        images, indices = super().__getitems__(keys)
        masks = [self.mask(index)[:, ::-1] if self.flips(epoch, wanted) else self.mask(index)
                 for (epoch, wanted), index in zip(keys, indices.tolist(), strict=True)]
        labels = torch.from_numpy(np.stack(masks).astype(np.int16))
        return images, indices, labels if self.unlabelled is None else labels.masked_fill_(labels == self.unlabelled, -1)

    def _check(self, index: int, mask: np.ndarray) -> None:
        if mask.dtype != np.uint8:
            raise DataError(f"{self.source.picture_name(index)}: expected a mask with one byte of class a pixel, got {mask.dtype}")
        labelled = mask if self.unlabelled is None else mask[mask != self.unlabelled]
        if labelled.size and labelled.max() >= self.classes:
            raise DataError(f"{self.source.picture_name(index)}: its mask has class {labelled.max()}, expected 0..{self.classes - 1}; see "
                            f"--model.classes, or --unlabelled {labelled.max()} if that number says nothing")

    def _mask_place(self, index: int) -> np.ndarray | None:
        if self._masks is None:
            return None
        size = self.resolution * self.resolution
        return np.frombuffer(self._masks, np.uint8, size, index * size).reshape(self.resolution, self.resolution)
