"""Pictures and drawings of a report, as HTML and SVG that need nothing from outside the page, and the pictures as one file."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

COLOURS = ("#2f5d8a", "#b5532a", "#4f7a3a", "#7a4f8a", "#8a7a2f", "#5a5a5a")
_DASHES = ("-", "--", ":", "-.")
# Text stays text and the same drawing is the same bytes.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vqkit", "font.family": "sans-serif", "font.size": 9,
                            "axes.spines.top": False, "axes.spines.right": False})


def embedded(picture: Tensor) -> str:
    """A picture (3, H, W) uint8 as the address of an <img> that holds it, lossless."""
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def picture_rows(rows: dict[str, Tensor], notes: Sequence[str]) -> str:
    """A table of pictures: a row for each name with its (N, 3, H, W) uint8, the same pictures below one another, notes last."""
    lines = []
    for name, pictures in rows.items():
        cells = "".join(f'<td><img src="{embedded(picture)}" alt="{html.escape(name)}"></td>' for picture in pictures)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    if any(notes):
        lines.append("<tr><th></th>" + "".join(f'<td class="note">{html.escape(note)}</td>' for note in notes) + "</tr>")
    return f'<div class="wide"><table class="pictures">{"".join(lines)}</table></div>'


def picture_sheet(rows: dict[str, Tensor], gap: int = 4) -> Image.Image:
    """The rows of `picture_rows` as one picture, `gap` white pixels between, no text; all are of one size (N, 3, H, W) uint8."""
    sheets = [torch.nn.functional.pad(pictures, (gap, 0, gap, 0), value=255).permute(2, 0, 3, 1).flatten(1, 2) for pictures in rows.values()]
    return Image.fromarray(torch.nn.functional.pad(torch.cat(sheets), (0, 0, 0, gap, 0, gap), value=255).numpy())


def curves(series: dict[str, list[tuple[float, float]]], title: str, unit: str) -> str:
    """Lines of (step, value) from zero up, a colour a run, as an SVG drawing."""
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.subplots()
    for number, (colour, (name, points)) in enumerate(zip(_cycled(len(series)), series.items())):
        # Another dash where the colours begin again.
        axes.plot(*zip(*points), color=colour, label=name, linewidth=1.4, linestyle=_DASHES[number // len(COLOURS) % len(_DASHES)])
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.5)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9 if len(series) < 7 else 6)
    return _svg(figure)


def usage_bars(runs: dict[str, list[list[int]]], part_names: dict[str, Sequence[str]]) -> str:
    """How often each code was selected, most frequent first, one panel for each part of each run, on one logarithmic scale."""
    panels = [(name, part, counts) for name, parts in runs.items() for part, counts in zip(part_names[name], parts, strict=True)]
    figure = Figure(figsize=(9.4, 1.9 * ((len(panels) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(panels) + 1) // 2, 2, sharey=True, squeeze=False).flatten()
    colour_of = dict(zip(runs, _cycled(len(runs))))
    for axes, (name, part, counts) in zip(grid, panels):
        ordered = np.sort(np.asarray(counts))[::-1]
        used = int((ordered > 0).sum())
        # Filled steps: a thousand separate bars would make the page a hundred times larger and look the same.
        axes.fill_between(np.arange(len(ordered)), np.maximum(ordered, 0.5), 0.5, step="mid", color=colour_of[name], linewidth=0)
        axes.set(yscale="log", xlim=(0, len(ordered)), xlabel="codes, most selected first")
        axes.set_title(f"{name}: {part}, {used:,} of {len(ordered):,} selected")
        axes.set_ylim(bottom=0.5)
    for axes in grid[::2]:
        axes.set_ylabel("times selected")
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    return _svg(figure)


def word_overlay(
    picture: Tensor, indices: Tensor, words: tuple[list[str], list[str]], selections: tuple[int, int], cells: int = 4, side: int = 300
) -> str:
    """A picture (3, H, W) uint8 under a grid: in each cell the adjective and the noun that its positions selected most often.

    indices: (h, w, S) of the picture's codes, adjectives in the first selections[0] columns, then nouns. A tie goes to the word that
    comes first in reading order.
    """
    height, width, _ = indices.shape
    cells = min(cells, height, width)
    step = side / cells
    drawn = [f'<image href="{embedded(picture)}" width="{side}" height="{side}" preserveAspectRatio="none"/>']
    for row in range(cells):
        for column in range(cells):
            patch = indices[row * height // cells : (row + 1) * height // cells, column * width // cells : (column + 1) * width // cells]
            parts = patch.reshape(-1, patch.shape[-1]).split(list(selections), dim=1)
            chosen = [names[Counter(part.flatten().tolist()).most_common(1)[0][0]] for names, part in zip(words, parts, strict=True)]
            x, y = (column + 0.5) * step, (row + 0.5) * step
            drawn.append(f'<rect x="{column * step:.0f}" y="{row * step:.0f}" width="{step:.0f}" height="{step:.0f}"/>')
            size = min(13.0, 1.6 * step / max(map(len, chosen)))
            for offset, word in zip((-3, 12), chosen):
                drawn.append(f'<text x="{x:.0f}" y="{y + offset:.0f}" font-size="{size:.1f}">{html.escape(word)}</text>')
    return f'<svg class="words" viewBox="0 0 {side} {side}" width="{side}" height="{side}" role="img">{"".join(drawn)}</svg>'


def _cycled(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _svg(figure: Figure) -> str:
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = held.getvalue()
    return text[text.index("<svg"):]
