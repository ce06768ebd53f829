"""Semantic masks as tokens: the class that most pixels of each cell of the map of codes have."""

from __future__ import annotations

import colorsys
import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.sources import UNLABELLED, DataError, Source
from training.priors.codes import PictureFormat
from vqkit.models import ABSENT

_logger = logging.getLogger("training")


def learn_mask_classes(source: Source) -> dict:
    """How many classes the masks have. Raises ValueError where there are no masks, or they have one class."""
    count = source.mask_classes()
    if not count:
        raise _no_masks(source)
    if count == 1:
        raise ValueError(f"data: the masks of {source.name} have the one class 0, expected at least two; {UNLABELLED} is no class, so masks of 0 and "
                         f"{UNLABELLED} need 1 for it")
    return {"classes": count}


def mask_rows(source: Source, pictures: PictureFormat, classes: int) -> tuple[Tensor, Tensor]:
    """int64 (N,) the pictures that have a mask, and (N, h w) the classes of their cells, -1 for none.

    Where only some pictures have a mask, a warning says how many have none and why. Raises ValueError where no picture has one, or one
    has a class that is not of these.
    """
    numbers, grids, reasons = [], [], []
    for index in tqdm(range(len(source)), desc="masks", unit="mask", leave=False, mininterval=1):
        try:
            mask = source.read_mask(index, pictures.resolution, pictures.fit)
        except DataError as reason:
            reasons.append(reason)
            continue
        highest = int(mask[mask != UNLABELLED].max(initial=0))
        if highest >= classes:
            raise ValueError(f"data: {source.picture_name(index)} has a mask with class {highest}, "
                             f"expected 0 .. {classes - 1}, the classes of training")
        numbers.append(index)
        grids.append(cell_classes(mask, pictures.height, pictures.width, classes))
    if not grids:
        raise _no_masks(source, reasons[0]) from reasons[0]
    if all((grid == ABSENT).all() for grid in grids):
        raise ValueError(f"data: the masks of {source.name} have no class in any cell, only {UNLABELLED}, which is none")
    if reasons:
        _logger.warning("left out %d of %d pictures whose mask cannot be read: %s", len(reasons), len(source), reasons[0])
    return torch.tensor(numbers), torch.from_numpy(np.stack(grids))


def cell_classes(mask: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    """The class of most pixels in each cell, int64 (height width,) row by row, -1 where most have none; ties to the lowest class.

    mask: (R, R) of classes, 255 for none as data sets commonly mark it; a pixel belongs to the cell that its upper left corner lies in.
    """
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(mask.shape, (height, width)))
    cells = rows[:, None] * width + columns
    # One more, the last, counts pixels without a class.
    numbers = np.where(mask == UNLABELLED, classes, mask.astype(np.int64))
    counts = np.bincount((cells * (classes + 1) + numbers).ravel(), minlength=height * width * (classes + 1))
    found = counts.reshape(height * width, classes + 1).argmax(1)
    return np.where(found == classes, ABSENT, found)


def painted(grid: Tensor, classes: int, resolution: int) -> Tensor:
    """A mask (h, w) in colours, uint8 (3, R, R): a hue for each class, as far apart as the classes allow, black for -1."""
    # a step of the golden ratio keeps neighbours in number far apart in hue, and three brightnesses tell what is left
    colours = [colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, (1.0, 0.75, 0.5)[number % 3]) for number in range(classes)]
    # -1 is the last
    palette = (torch.tensor([*colours, (0.0, 0.0, 0.0)]) * 255).round().to(torch.uint8)
    rows, columns = (torch.arange(resolution) * side // resolution for side in grid.shape)
    return palette[grid.cpu()[rows][:, columns]].permute(2, 0, 1).contiguous()


def _no_masks(source: Source, reason: DataError | None = None) -> ValueError:
    said = f"; {reason}" if reason else ""
    return ValueError(f'data: {source.name} has no masks that can be read; expected a metadata.jsonl with the "mask" of its pictures{said}')
