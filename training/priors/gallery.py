"""Panels of a task as one picture to look at: pictures side by side, boxes drawn, texts below."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from training.pictures import COLOURS
from training.tasks.task import Panel

_GAP, _LINE = 8, 16


def gallery(panels: list[Panel], columns: int = 4, side: int = 160) -> Image.Image:
    """A grid of panels, each picture drawn at `side` pixels, the text of a panel wrapped below its pictures.

    Raises ValueError without panels.
    """
    if not panels:
        raise ValueError("panels: expected at least one, got none")
    across = max(len(panel.pictures) for panel in panels)
    width = max(across, 1) * (side + _GAP) - _GAP
    font = ImageFont.load_default(12)
    texts = [_wrapped(panel.text, font, width) for panel in panels]
    below = max(len(lines) for lines in texts) * _LINE
    height = (side if across else 0) + below
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + 2 * _GAP), rows * (height + 2 * _GAP)), "white")
    for number, (panel, lines) in enumerate(zip(panels, texts, strict=True)):
        left, top = number % columns * (width + 2 * _GAP) + _GAP, number // columns * (height + 2 * _GAP) + _GAP
        _draw_pictures(sheet, panel, left, top, side)
        draw = ImageDraw.Draw(sheet)
        for line, text in enumerate(lines):
            draw.text((left, top + (side if across else 0) + 2 + line * _LINE), text, "black", font)
    return sheet


def write_gallery(panels: list[Panel], path: Path, columns: int = 4) -> None:
    """The grid as a picture file of the kind that the path's suffix names. Raises ValueError for a suffix that names none."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"out: expected the name of a picture such as pictures.png, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    gallery(panels, columns).save(path)


def _draw_pictures(sheet: Image.Image, panel: Panel, left: int, top: int, side: int) -> None:
    for place, picture in enumerate(panel.pictures):
        shown = Image.fromarray(picture.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())
        # Small pictures in whole pixels: what the decoder made is to be seen, not what a filter makes of it.
        kind = Image.Resampling.NEAREST if side >= shown.width else Image.Resampling.BICUBIC
        shown = shown.resize((side, side), kind)
        draw = ImageDraw.Draw(shown)
        for colour, (_, box, name) in zip(COLOURS, [entry for entry in panel.boxes if entry[0] == place]):
            x0, y0, x1, y1 = (value * (side - 1) for value in box)
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=2)
            draw.text((min(x0, x1) + 3, min(y0, y1) + 1), name, colour, ImageFont.load_default(11))
        sheet.paste(shown, (left + place * (side + _GAP), top))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
