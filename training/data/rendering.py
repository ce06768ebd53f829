"""Pixels of a scene at any resolution: anti-aliased shapes with texture, light and shadow over a painted background.

Shapes are signed distance functions in their own coordinates (unit radius, y downwards); a pixel's coverage is its distance to the
outline in pixels, clipped, so edges are smooth at every size. Noise is drawn on grids of fixed sizes and resized bicubically: the
same scene at another resolution is the same picture.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.scenes import BACKGROUNDS, CLASSES, COLOURS, Scene, SceneObject

STRIPES = 1 / 11  # period of every texture, as a fraction of the picture


@dataclass(frozen=True)
class Rendering:
    """A picture (R, R, 3) uint8; the class of each pixel (R, R) uint8, an index of `scenes.CLASSES`; and whose it is (R, R) int8, an
    index of the scene's objects or -1."""

    image: np.ndarray
    mask: np.ndarray
    owners: np.ndarray

    def boxes(self) -> list[list[float]]:
        """The tight box [x0, y0, x1, y1] of each object, in pixels; x1 and y1 are past the last one."""
        found = []
        for owner in range(int(self.owners.max()) + 1):
            rows, columns = np.nonzero(self.owners == owner)
            found.append([float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)])
        return found


def render(scene: Scene, resolution: int) -> Rendering:
    """Paint the scene on a square of `resolution` pixels (at least 16, below which shapes are no longer told apart)."""
    if resolution < 16:
        raise ValueError(f"resolution: expected at least 16 for scenes, got {resolution}")
    noise = np.random.default_rng(zlib.crc32(scene.key.encode()))
    image, mask = _paint_background(scene, resolution, noise)
    owners = np.full((resolution, resolution), -1, dtype=np.int8)
    for owner, item in enumerate(scene.objects):
        _paint_object(item, owner, image, mask, owners, noise)
    return Rendering((_unit(image) * 255 + 0.5).astype(np.uint8), mask, owners)


def _paint_background(scene: Scene, resolution: int, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    upper, lower, _ = BACKGROUNDS[scene.background]
    image = SURFACE_PAINTERS[upper](resolution, noise)
    mask = np.full((resolution, resolution), CLASSES.index(upper), dtype=np.uint8)
    if lower is not None:
        roughness = 0.06 if lower in ("grass", "sand", "snow") else 0.0
        skyline = scene.horizon + roughness * _smooth_noise(noise, (1, 5), (1, resolution))
        below = _unit((_centres(resolution)[:, None] - skyline) * resolution + 0.5)
        image += below[..., None] * (SURFACE_PAINTERS[lower](resolution, noise) - image)
        mask[below > 0.5] = CLASSES.index(lower)
    return image, mask


def _paint_object(
    item: SceneObject, owner: int, image: np.ndarray, mask: np.ndarray, owners: np.ndarray, noise: np.random.Generator
) -> None:
    resolution = len(image)
    # The window holds the object and its shadow; all else is left alone, which is most of the time saved.
    reach = item.radius * 1.35
    window = tuple(slice(max(0, int((centre - reach) * resolution)), int((centre + reach) * resolution) + 1) for centre in (item.y, item.x))
    centres = _centres(resolution)
    x, y = _turn(centres[None, window[1]] - item.x, centres[window[0], None] - item.y, item.angle)
    u, v = x / item.radius, y / item.radius
    distance = DISTANCES[item.shape]

    canvas = image[window]
    canvas *= 1 - 0.32 * _unit(0.5 - distance(u - 0.15, v - 0.2) / 0.3)[..., None]
    inwards = -distance(u, v)
    coverage = _unit(0.5 + inwards * (item.radius * resolution))
    light = 1.04 - 0.16 * (u + v) - 0.22 * _unit(1 - inwards / 0.16)
    ground, figure = _colours(item, noise)
    painted = ground
    if item.texture != "plain":
        painted = ground + _texture(item.texture, x / STRIPES, y / STRIPES, 1 / resolution)[..., None] * (figure - ground)
    canvas += coverage[..., None] * (painted * light[..., None] - canvas)
    inside = coverage >= 0.5
    mask[window][inside] = CLASSES.index(item.shape)
    owners[window][inside] = owner


def _unit(values: np.ndarray) -> np.ndarray:
    """Clip to 0..1; the two functions cost a third of np.clip on pictures this small."""
    return np.minimum(np.maximum(values, 0), 1)


def _centres(resolution: int) -> np.ndarray:
    return (np.arange(resolution, dtype=np.float32) + 0.5) / resolution


def _smooth_noise(noise: np.random.Generator, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Noise of unit half-range on a small (rows, columns) grid, resized bicubically to `size`."""
    values = noise.random(grid, dtype=np.float32) * 2 - 1
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BICUBIC))


def _colours(item: SceneObject, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The ground colour, a little different in every object, and the colour of its pattern."""
    hue, saturation, value = colorsys.rgb_to_hsv(*COLOURS[item.colour])
    jitter = noise.uniform(-1, 1, 3)
    hue, saturation, value = (hue + 0.012 * jitter[0]) % 1, saturation * (1 + 0.08 * jitter[1]), value * (1 + 0.05 * jitter[2])
    if item.shade == "dark":
        value *= 0.62
    if item.shade == "pale":
        saturation, value = saturation * 0.5, min(1.0, value * 1.1 + 0.12)
    ground = np.array(colorsys.hsv_to_rgb(hue, min(saturation, 1.0), min(value, 1.0)), dtype=np.float32)
    bright = float(ground @ np.array([0.3, 0.59, 0.11]))
    figure = ground * 0.45 if bright > 0.6 else ground + (0.95 - ground) * 0.75
    return ground, figure.astype(np.float32)


def _texture(texture: str, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """How much of the pattern's colour a point has, 0 to 1, with edges one pixel wide; u and v count periods of the pattern."""
    if texture == "striped":
        edge = _triangle_wave(u + v * 0.4)
    elif texture == "wavy":
        edge = _triangle_wave(v + 0.25 * np.sin(3.93 * u))
    elif texture == "checkered":
        one, other = _triangle_wave(u / 1.4), _triangle_wave(v / 1.4)
        edge = np.sign(one * other) * np.minimum(np.abs(one), np.abs(other))
    else:
        # Dots on staggered rows: the distance to the nearest lattice point against the dot's radius.
        row = np.round(v / 0.9)
        shifted = u - 0.5 * np.mod(row, 2)
        edge = 0.36 - np.hypot(shifted - np.round(shifted), v - row * 0.9)
    return _unit(0.5 + edge * (STRIPES / pixel))


def _triangle_wave(u: np.ndarray) -> np.ndarray:
    """The signed distance to the nearest edge of stripes that change every half period."""
    return 0.25 - np.abs(u - np.floor(u) - 0.5)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """All ten edges are one edge, from an outer corner (1, 0) to an inner one, once the angle is folded into half a sector."""
    sector = 2 * math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    rho = np.hypot(x, y)
    inner_x, inner_y = 0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2)
    length = math.hypot(inner_y, 1 - inner_x)
    return (rho * np.cos(angle) - 1) * (inner_y / length) + rho * np.sin(angle) * ((1 - inner_x) / length)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The exact distance to two arcs over a square standing on its corner, scaled and moved to fill the unit circle."""
    x, y = np.abs(x) / 1.65, (0.85 - y) / 1.65
    arc = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    tip = np.maximum(x + y, 0) / 2
    flank = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - tip) ** 2 + (y - tip) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, arc, flank) * 1.65


DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.82,
    "triangle": lambda x, y: np.maximum(y - 0.7, 0.873 * np.abs(x) - 0.488 * (y + 1)),
    "diamond": lambda x, y: (1.4 * np.abs(x) + np.abs(y) - 1) / 1.72,
    "hexagon": lambda x, y: np.maximum(0.866 * np.abs(x) + 0.5 * np.abs(y), np.abs(y)) - 0.84,
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.28,
    "cross": lambda x, y: np.minimum(np.maximum(np.abs(x) - 0.34, np.abs(y) - 0.95), np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.34)),
    "heart": _heart,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - 0.5, y + 0.1)),
}


def _gradient(resolution: int, top: tuple, bottom: tuple) -> np.ndarray:
    amount = _centres(resolution)[:, None, None]
    rows = np.array(top, np.float32) * (1 - amount) + np.array(bottom, np.float32) * amount
    return np.repeat(rows, resolution, axis=1)


def _grained(image: np.ndarray, noise: np.random.Generator, *grains: tuple[tuple[int, int], float]) -> np.ndarray:
    """Multiply brightness by 1 + amplitude * noise, for each (grid, amplitude)."""
    size = image.shape[:2]
    return image * (1 + sum(amplitude * _smooth_noise(noise, grid, size) for grid, amplitude in grains))[..., None]


def _sky(resolution: int, noise: np.random.Generator) -> np.ndarray:
    image = _gradient(resolution, (0.3, 0.55, 0.9), (0.78, 0.9, 1.0))
    clouds = _smooth_noise(noise, (7, 5), image.shape[:2]) + 0.4 * _smooth_noise(noise, (16, 10), image.shape[:2])
    return image + np.clip(clouds * 0.9 - 0.15, 0, 0.85)[..., None] * (0.98 - image)


def _sunset(resolution: int, noise: np.random.Generator) -> np.ndarray:
    image = _gradient(resolution, (0.3, 0.2, 0.5), (1.05, 0.62, 0.28)) + np.float32([0.1, 0.0, -0.02])
    return _grained(image, noise, ((12, 4), 0.12))


def _night(resolution: int, noise: np.random.Generator) -> np.ndarray:
    image = _gradient(resolution, (0.03, 0.04, 0.12), (0.12, 0.15, 0.32))
    lights = np.where(noise.random((30, 30)) > 0.96, noise.uniform(0.5, 1.2, (30, 30)), 0).astype(np.float32)
    stars = np.asarray(Image.fromarray(lights).resize((resolution, resolution), Image.Resampling.BICUBIC))
    return image + _unit(stars)[..., None] * np.float32([0.9, 0.9, 0.8])


def _grass(resolution: int, noise: np.random.Generator) -> np.ndarray:
    return _grained(_gradient(resolution, (0.5, 0.72, 0.32), (0.18, 0.46, 0.14)), noise, ((12, 40), 0.22), ((4, 4), 0.1))


def _sand(resolution: int, noise: np.random.Generator) -> np.ndarray:
    return _grained(_gradient(resolution, (0.93, 0.84, 0.62), (0.82, 0.69, 0.44)), noise, ((32, 32), 0.07), ((9, 3), 0.09))


def _water(resolution: int, noise: np.random.Generator) -> np.ndarray:
    return _grained(_gradient(resolution, (0.35, 0.62, 0.78), (0.06, 0.24, 0.5)), noise, ((36, 8), 0.2), ((8, 3), 0.08))


def _snow(resolution: int, noise: np.random.Generator) -> np.ndarray:
    return _grained(_gradient(resolution, (0.93, 0.95, 0.99), (0.78, 0.84, 0.93)), noise, ((6, 4), 0.05), ((28, 28), 0.03))


def _brick(resolution: int, noise: np.random.Generator) -> np.ndarray:
    rows, columns = 8, 4
    down = _centres(resolution)[:, None] * rows
    course = np.floor(down).astype(int)
    across = _centres(resolution)[None, :] * columns + 0.5 * (course % 2)
    edge = np.minimum(np.abs(down - np.round(down)) / rows, np.abs(across - np.round(across)) / columns)
    mortar = _unit(0.5 + (0.011 - edge) * resolution)[..., None]
    tone = noise.uniform(0.82, 1.12, (rows, columns + 1)).astype(np.float32)[course, np.floor(across).astype(int)]
    bricks = tone[..., None] * np.float32([0.66, 0.33, 0.26])
    return _grained(bricks + mortar * (np.float32([0.8, 0.77, 0.72]) - bricks), noise, ((24, 24), 0.06))


def _wood(resolution: int, noise: np.random.Generator) -> np.ndarray:
    planks = 5
    down = _centres(resolution)[:, None] * planks
    tone = noise.uniform(0.85, 1.15, (planks, 1)).astype(np.float32)[np.floor(down).astype(int)[:, 0]]
    gap = _unit(0.5 + (0.008 - np.abs(down - np.round(down)) / planks) * resolution)
    image = (tone * (1 - 0.6 * gap))[..., None] * np.broadcast_to(np.float32([0.68, 0.48, 0.3]), (resolution, resolution, 3))
    return _grained(image, noise, ((48, 5), 0.12), ((20, 3), 0.06))


def _paper(resolution: int, noise: np.random.Generator) -> np.ndarray:
    hue = noise.uniform()
    corners = [colorsys.hsv_to_rgb((hue + shift) % 1, noise.uniform(0.08, 0.3), noise.uniform(0.8, 0.98)) for shift in (0.0, 0.08)]
    return _grained(_gradient(resolution, *corners), noise, ((3, 3), 0.05))


SURFACE_PAINTERS = {"sky": _sky, "sunset": _sunset, "night": _night, "grass": _grass, "sand": _sand, "water": _water,
                    "snow": _snow, "brick": _brick, "wood": _wood, "paper": _paper}
