"""The words whose codes are the nearest to the regions of a picture, of a tokenizer whose codes are words."""

from __future__ import annotations

import html
from collections import Counter

import torch
from torch import Tensor

from training.data.regions import Box, Region
from training.pictures import COLOURS, embedded

_WORDS = 3


def words_in(box: Box, indices: Tensor, words: tuple[list[str], ...], selections: tuple[int, ...]) -> list[str]:
    """Of each part the three words selected most often inside a box, joined by commas; a tie goes to the word that comes first.

    indices: int64 (h, w, S) of one picture.  A position is inside with its centre; without one, the position nearest to the box's
    centre is taken.
    """
    height, width, _ = indices.shape
    x0, y0, x1, y1 = box
    rows = [row for row in range(height) if y0 <= (row + 0.5) / height <= y1] or [min(height - 1, int((y0 + y1) / 2 * height))]
    columns = [column for column in range(width) if x0 <= (column + 0.5) / width <= x1] or [min(width - 1, int((x0 + x1) / 2 * width))]
    inside = indices[torch.tensor(rows)][:, torch.tensor(columns)]
    parts = inside.reshape(-1, indices.shape[-1]).split(list(selections), dim=1)
    return [", ".join(names[code] for code, _ in Counter(part.flatten().tolist()).most_common(_WORDS)) for names, part in zip(words, parts, strict=True)]


def region_figure(picture: Tensor, regions: list[Region], said: list[list[str]], side: int = 300) -> str:
    """A picture (3, R, R) uint8 with its boxes, and below it the first phrase of each with the words of its box."""
    drawn, lines = [f'<image href="{embedded(picture)}" width="{side}" height="{side}" preserveAspectRatio="none"/>'], []
    for colour, region, words in zip(COLOURS, regions, said):
        x0, y0, x1, y1 = region.box
        drawn.append(f'<rect x="{x0 * side:.0f}" y="{y0 * side:.0f}" width="{(x1 - x0) * side:.0f}" height="{(y1 - y0) * side:.0f}" '
                     f'fill="none" stroke="{colour}" stroke-width="3"/>')
        lines.append(f'<b style="color:{colour}">{html.escape(region.phrases[0])}</b>: {html.escape("; ".join(words))}')
    return (f'<figure><svg viewBox="0 0 {side} {side}" width="{side}" height="{side}" role="img">{"".join(drawn)}</svg>'
            f'<figcaption>{"<br>".join(lines)}</figcaption></figure>')
