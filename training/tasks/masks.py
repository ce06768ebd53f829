"""Semantic masks as tokens: the class that most pixels of each cell of the map of codes have."""

from __future__ import annotations

import colorsys
import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.sources import DataError, Source
from training.priors.codes import PictureFormat

_logger = logging.getLogger("training")


def learn_mask_classes(source: Source) -> dict:
    """How many classes the masks have. Raises ValueError where there are no masks."""
    count = source.mask_classes()
    if not count:
        raise _no_masks(source)
    return {"classes": count}


def mask_rows(source: Source, pictures: PictureFormat, classes: int) -> tuple[Tensor, Tensor]:
    """int64 (N,) the pictures that have a mask, and (N, h w) the classes of their cells.

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
        if int(mask.max()) >= classes:
            raise ValueError(f"data: {source.picture_name(index)} has a mask with class {int(mask.max())}, "
                             f"expected 0 .. {classes - 1}, the classes of training")
        numbers.append(index)
        grids.append(cell_classes(mask, pictures.height, pictures.width, classes))
    if not grids:
        raise _no_masks(source) from reasons[0]
    if reasons:
        _logger.warning("left out %d of %d pictures whose mask cannot be read: %s", len(reasons), len(source), reasons[0])
    return torch.tensor(numbers), torch.from_numpy(np.stack(grids))


def cell_classes(mask: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    """The class of most pixels in each cell, int64 (height width,) row by row; ties to the lowest class.

    mask: (R, R) of classes; a pixel belongs to the cell that its upper left corner lies in.
    """
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(mask.shape, (height, width)))
    cells = rows[:, None] * width + columns
    counts = np.bincount((cells * classes + mask).ravel(), minlength=height * width * classes)
    return counts.reshape(height * width, classes).argmax(1)


def painted(grid: Tensor, classes: int, resolution: int) -> Tensor:
    """A mask (h, w) in colours, uint8 (3, R, R): a hue for each class, as far apart as the classes allow."""
    # a step of the golden ratio keeps neighbours in number far apart in hue, and three brightnesses tell what is left
    colours = [colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, (1.0, 0.75, 0.5)[number % 3]) for number in range(classes)]
    palette = (torch.tensor(colours) * 255).round().to(torch.uint8)
    rows, columns = (torch.arange(resolution) * side // resolution for side in grid.shape)
    return palette[grid.cpu()[rows][:, columns]].permute(2, 0, 1).contiguous()


def _no_masks(source: Source) -> ValueError:
    return ValueError(f'data: {source.name} has no masks; expected a metadata.jsonl with the "mask" of its pictures')
