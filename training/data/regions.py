"""What phrases of a picture refer to: boxes as fractions of the square that is shown of it."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image, ImageOps

from training.data import scenes
from training.data.sources import PictureSource, SceneSource, Source

Box = tuple[float, float, float, float]


class Region(NamedTuple):
    """Ways to say what is meant, what kind of thing it is where that is known, and its box (x0, y0, x1, y1) as fractions of the square."""

    phrases: tuple[str, ...]
    kind: str | None
    box: Box


def regions_of(source: Source, index: int, resolution: int, fit: str) -> list[Region]:
    """The regions of a picture with exactly one box and at least one phrase, cut as the picture is ("crop" or "stretch").

    Those of which less than half lies in the square are left out, the others are clipped to it; [] where none are known.

    resolution: of the picture that is shown. The boxes of a drawn scene are those of its pixels at this resolution; of a file they are
        given in pixels of the file's picture as it is to be seen (after the rotation that its EXIF asks for).
    """
    known, size = _known(source, index, resolution)
    found = []
    for region in known:
        phrases = tuple(phrase for phrase in region.get("phrases") or [] if phrase.strip())
        box = shown_box(region["boxes"][0], size, fit) if phrases and len(region.get("boxes") or []) == 1 else None
        if box is not None:
            found.append(Region(phrases, next(iter(region.get("types") or []), None), box))
    return found


def phrases_of(source: Source, index: int) -> list[str]:
    """All phrases of a picture that mean exactly one box, wherever that lies; a scene is not drawn for them."""
    if isinstance(source, SceneSource):
        scene = scenes.sample_scene(source.seed, source.split, index)
        known = scenes.regions(scene, [[0.0, 0.0, 1.0, 1.0]] * len(scene.objects))
    else:
        known = source.record(index).get("regions") or []
    return [phrase for region in known if len(region.get("boxes") or []) == 1 for phrase in region.get("phrases") or [] if phrase.strip()]


def _known(source: Source, index: int, resolution: int) -> tuple[list[dict], tuple[int, int]]:
    """The records of the regions, and width and height of the picture in whose pixels their boxes are."""
    if isinstance(source, SceneSource):
        return source.regions(index, resolution), (resolution, resolution)
    known = source.record(index).get("regions") or []
    if not known or not isinstance(source, PictureSource):
        return [], (1, 1)
    try:
        size = ImageOps.exif_transpose(Image.open(io.BytesIO(source.tree.read(source.record(index)["file_name"])))).size
    except Exception:
        # A damaged picture is named where pictures are read, and has no examples.
        return [], (1, 1)
    return known, size


def shown_box(box: list[float], size: tuple[int, int], fit: str, visible: float = 0.5) -> Box | None:
    """A box in pixels of a picture of this width and height as fractions of the square that `fit` shows of it.

    None where the box is empty or less than `visible` of its area is shown.
    """
    sides = (min(size),) * 2 if fit == "crop" else size
    offsets = [(whole - side) / 2 for whole, side in zip(size, sides)]
    whole = [(value - offsets[axis % 2]) / sides[axis % 2] for axis, value in enumerate(box)]
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in whole)
    area = (whole[2] - whole[0]) * (whole[3] - whole[1])
    if not (x0 < x1 and y0 < y1) or (x1 - x0) * (y1 - y0) < visible * area:
        return None
    return x0, y0, x1, y1
