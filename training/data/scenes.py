"""Procedural captioned scenes: data for every task with no download.

A scene is one to four coloured shapes on a landscape, a wall or plain paper. It is a pure function of ``(seed, split, index)`` and
says what is where in fractions of the picture, so one scene can be rendered at any resolution (`training.data.rendering`). Captions,
referring phrases and questions are derived from it; questions are of the four types of COCO-QA (colour, location, number, object).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

SIZES = {"small": (0.095, 0.12), "medium": (0.145, 0.17), "large": (0.2, 0.24)}
SHAPES = ("circle", "square", "triangle", "diamond", "hexagon", "star", "ring", "cross", "heart", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checkered", "wavy")
SHADES = ("", "dark", "pale")
COLOURS = {
    "red": (0.86, 0.16, 0.16), "orange": (0.96, 0.55, 0.13), "yellow": (0.96, 0.86, 0.2), "green": (0.2, 0.62, 0.24),
    "turquoise": (0.2, 0.75, 0.72), "blue": (0.18, 0.33, 0.82), "purple": (0.52, 0.24, 0.66), "pink": (0.95, 0.52, 0.68),
    "brown": (0.5, 0.32, 0.18), "black": (0.1, 0.1, 0.12), "white": (0.95, 0.95, 0.93), "gray": (0.52, 0.53, 0.55),
}
SURFACES = ("sky", "sunset", "night", "grass", "sand", "water", "snow", "brick", "wood", "paper")
CLASSES = SURFACES + SHAPES

# name: (upper surface, lower surface or None, ways to say it)
BACKGROUNDS = {
    "meadow": ("sky", "grass", ("a green meadow", "a grassy field under a blue sky", "fresh green grass")),
    "beach": ("sky", "sand", ("a sandy beach", "yellow sand under a cloudy sky", "a sunny beach")),
    "sea": ("sky", "water", ("a calm blue sea", "rippling water", "a wide ocean under a bright sky")),
    "evening": ("sunset", "water", ("a glowing evening sea", "dark water under an orange sky", "a quiet lake at sunset")),
    "desert": ("sunset", "sand", ("a warm desert", "dry sand under a red sky", "a lonely desert at sunset")),
    "winter": ("night", "snow", ("a snowy field at night", "white snow under a starry sky", "a cold winter night")),
    "snowfield": ("sky", "snow", ("a snowy field", "bright snow under a clear sky", "a white winter field")),
    "space": ("night", None, ("a starry night", "a dark sky with tiny stars", "a black sky")),
    "wall": ("brick", None, ("a brick wall", "an old red wall", "a rough brick wall")),
    "table": ("wood", None, ("a wooden table", "a brown wooden board", "smooth brown planks")),
    "paper": ("paper", None, ("a plain background", "soft coloured paper", "a smooth sheet of paper")),
}

SAY_SIZE = {"small": ("small", "little", "tiny"), "medium": ("medium", ""), "large": ("large", "big", "huge")}
SAY_TEXTURE = {"plain": ("", "", "plain"), "striped": ("striped",), "dotted": ("dotted", "spotted"),
               "checkered": ("checkered",), "wavy": ("wavy",)}
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class SceneObject:
    """One shape: its words, and its centre (x, y), radius and turn (radians); lengths are fractions of the picture's side."""

    shape: str
    colour: str
    shade: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What is to be seen: a background with its horizon (fraction from the top), objects, and the key that seeds all that is random."""

    key: str
    background: str
    horizon: float
    objects: tuple[SceneObject, ...]


@lru_cache(maxsize=4096)
def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The scene number `index` of a split; splits share no scene because the split's name is part of the key."""
    key = f"scenes/{seed}/{split}/{index}"
    draw = random.Random(key)
    background = draw.choice(tuple(BACKGROUNDS))
    horizon = draw.uniform(0.35, 0.65)
    wanted = draw.choices((1, 2, 3, 4), weights=(2, 4, 3, 2))[0]
    objects: list[SceneObject] = []
    # A crowded picture may have no room left for a large shape: twenty tries, then fewer objects than wanted.
    for _ in range(20):
        if len(objects) == wanted:
            break
        candidate = _draw_object(draw)
        if all(_compatible(candidate, other) for other in objects):
            objects.append(candidate)
    return Scene(key, background, horizon, tuple(objects))


def _draw_object(draw: random.Random) -> SceneObject:
    size = draw.choice(tuple(SIZES))
    radius = draw.uniform(*SIZES[size])
    margin = radius * 1.05 + 0.01
    colour = draw.choice(tuple(COLOURS))
    shade = "" if colour in ("black", "white") else draw.choices(SHADES, weights=(3, 1, 1))[0]
    return SceneObject(shape=draw.choice(SHAPES), colour=colour, shade=shade,
                       texture=draw.choices(TEXTURES, weights=(3, 2, 2, 2, 1))[0], size=size,
                       x=draw.uniform(margin, 1 - margin), y=draw.uniform(margin, 1 - margin), radius=radius, angle=draw.uniform(-0.2, 0.2))


def _compatible(one: SceneObject, other: SceneObject) -> bool:
    """Neither touching nor named alike: every phrase refers to one object, and every box holds the whole of its object."""
    reach = (one.radius + other.radius) * 1.1
    apart = max(abs(one.x - other.x), abs(one.y - other.y)) > reach
    return apart and (one.shape, one.colour) != (other.shape, other.colour)


def captions(scene: Scene) -> list[str]:
    """Five captions: all objects with every attribute, a plain list, a relation, the background first, and one object's place."""
    draw = random.Random(scene.key + "/captions")
    full = [describe(item, draw) for item in scene.objects]
    brief = [describe(item, None) for item in scene.objects]
    place = draw.choice(BACKGROUNDS[scene.background][2])
    other_place = draw.choice(BACKGROUNDS[scene.background][2])
    count = len(scene.objects)
    shapes = "one shape" if count == 1 else f"{NUMBERS[count]} shapes"
    chosen = draw.randrange(count)
    said = [f"{_chain(scene, full)} on {place}." if count < 4 else f"{_listing(full)} on {place}.",
            f"a picture of {_listing(brief)}.",
            f"{place} with {shapes}, {_listing(full)}." if count > 1 else f"{place} with {full[0]}.",
            f"{full[chosen]} {location_phrase(scene.objects[chosen])} of {other_place}."]
    if count == 1:
        return [*said, f"there is one {scene.objects[0].colour} {scene.objects[0].shape} in front of {other_place}."]
    first, second = draw.sample(range(count), 2)
    relation = _relation(scene.objects[first], scene.objects[second])
    return [*said, f"the {brief[first].split(' ', 1)[1]} is {relation} the {brief[second].split(' ', 1)[1]}."]


def describe(item: SceneObject, draw: random.Random | None) -> str:
    """A noun phrase such as "a large red striped circle"; without `draw` the short form with colour and shape only."""
    if draw is None:
        words = [item.colour, item.shape]
    else:
        words = [draw.choice(SAY_SIZE[item.size]), item.shade, item.colour, draw.choice(SAY_TEXTURE[item.texture]), item.shape]
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def regions(scene: Scene, boxes: list[list[float]]) -> list[dict]:
    """Referring phrases with the box of each object, in the layout of ``metadata.jsonl``."""
    draw = random.Random(scene.key + "/regions")
    return [{"phrases": [describe(item, draw), f"the {item.colour} {item.shape}"], "types": [item.shape], "boxes": [box]}
            for item, box in zip(scene.objects, boxes, strict=True)]


def questions(scene: Scene) -> list[dict]:
    """Questions with one-word answers, of the types color, location, number and object."""
    draw = random.Random(scene.key + "/questions")
    asked = [{"question": "how many shapes are there?", "answer": NUMBERS[len(scene.objects)], "type": "number"}]
    shapes = [item.shape for item in scene.objects]
    for item in scene.objects:
        name = f"{item.colour} {item.shape}"
        asked.append({"question": f"where is the {name}?", "answer": location(item), "type": "location"})
        if shapes.count(item.shape) == 1:
            asked.append({"question": f"what is the color of the {item.shape}?", "answer": item.colour, "type": "color"})
    for one in scene.objects:
        for other in scene.objects:
            relation = _relation(one, other) if one is not other else ""
            if relation and [_relation(item, other) for item in scene.objects if item is not other].count(relation) == 1:
                asked.append({"question": f"what is {relation} the {other.colour} {other.shape}?", "answer": one.shape, "type": "object"})
    return asked[:1] + draw.sample(asked[1:], min(4, len(asked) - 1))


def location(item: SceneObject) -> str:
    """The side of the picture that the object is nearest to, or "middle"."""
    across, down = item.x - 0.5, item.y - 0.5
    if max(abs(across), abs(down)) < 0.14:
        return "middle"
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "top" if down < 0 else "bottom"


def location_phrase(item: SceneObject) -> str:
    """The location as the beginning of a phrase: "at the top", "in the middle", "on the left"."""
    place = location(item)
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(place, f"at the {place}")


def _relation(one: SceneObject, other: SceneObject) -> str:
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > abs(down):
        return "to the left of" if across < 0 else "to the right of"
    return "above" if down < 0 else "below"


def _chain(scene: Scene, phrases: list[str]) -> str:
    said = phrases[0]
    for before, item, phrase in zip(scene.objects, scene.objects[1:], phrases[1:]):
        said += f" {_relation(before, item)} {phrase}"
    return said


def _listing(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
