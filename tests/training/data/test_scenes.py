"""Scenes: what is said of a picture is what its pixels show."""

import random

import numpy as np
import pytest
from PIL import Image

from training.data.rendering import render
from training.data.scenes import CLASSES, COLOURS, SHAPES, captions, location, questions, regions, sample_scene

SCENES = [sample_scene(7, "train", index) for index in range(60)]


@pytest.mark.parametrize("resolution", [16, 64, 97])
def test_boxes_and_masks_agree(resolution):
    for scene in SCENES:
        drawn = render(scene, resolution)
        assert drawn.image.shape == (resolution, resolution, 3) and drawn.image.dtype == np.uint8
        boxes = drawn.boxes()
        assert len(boxes) == len(scene.objects)
        for owner, (item, (x0, y0, x1, y1)) in enumerate(zip(scene.objects, boxes)):
            mine = drawn.owners == owner
            assert (drawn.mask[mine] == CLASSES.index(item.shape)).all()
            assert 0 <= x0 < x1 <= resolution and 0 <= y0 < y1 <= resolution
            outside = mine.copy()
            outside[int(y0):int(y1), int(x0):int(x1)] = False
            assert not outside.any()
            # The centre of the box is near the centre of the object: lopsided shapes are off by a third of their radius at most.
            assert abs((x0 + x1) / 2 / resolution - item.x) < 0.4 * item.radius + 1 / resolution
            assert abs((y0 + y1) / 2 / resolution - item.y) < 0.4 * item.radius + 1 / resolution
        background = drawn.owners == -1
        assert all(CLASSES[value] not in SHAPES for value in np.unique(drawn.mask[background]))


def test_plain_objects_have_the_colour_that_is_said():
    checked = 0
    for index in range(200):
        scene = sample_scene(3, "val", index)
        drawn = render(scene, 96)
        for owner, item in enumerate(scene.objects):
            if item.texture == "plain" and item.shade == "" and item.size == "large":
                seen = np.median(drawn.image[drawn.owners == owner], axis=0) / 255
                nearest = min(COLOURS, key=lambda name: np.abs(seen - np.array(COLOURS[name])).sum())
                assert nearest == item.colour, (index, owner, seen)
                checked += 1
    assert checked > 15


def test_textured_objects_vary_more_than_plain_ones():
    spread = {"plain": [], "patterned": []}
    for index in range(200):
        scene = sample_scene(5, "val", index)
        drawn = render(scene, 96)
        for owner, item in enumerate(scene.objects):
            deviation = drawn.image[drawn.owners == owner].std(axis=0).mean()
            spread["plain" if item.texture == "plain" else "patterned"].append(deviation)
    assert np.mean(spread["patterned"]) > 2 * np.mean(spread["plain"])


def test_captions_name_every_object():
    for scene in SCENES:
        said = captions(scene)
        assert len(said) == 5 and len(set(said)) == 5
        for item in scene.objects:
            assert item.colour in said[0] and item.shape in said[0]
            assert f"{item.colour} {item.shape}" in said[1]
        assert not any("  " in caption or " a o" in caption for caption in said)
        assert said == captions(scene)


def test_answers_are_true():
    asked = 0
    for index in range(150):
        scene = sample_scene(2, "test", index)
        by_name = {f"{item.colour} {item.shape}": item for item in scene.objects}
        assert len(by_name) == len(scene.objects)
        for entry in questions(scene):
            question, answer = entry["question"], entry["answer"]
            asked += 1
            if entry["type"] == "number":
                assert answer == ("zero", "one", "two", "three", "four")[len(scene.objects)]
            elif entry["type"] == "color":
                assert [item.colour for item in scene.objects if item.shape in question] == [answer]
            elif entry["type"] == "location":
                assert location(next(item for name, item in by_name.items() if name in question)) == answer
            else:
                other = next(item for name, item in by_name.items() if question.endswith(f"the {name}?"))
                sign = {"left": lambda o: o.x < other.x, "right": lambda o: o.x > other.x, "above": lambda o: o.y < other.y, "below": lambda o: o.y > other.y}
                holds = next(check for word, check in sign.items() if word in question)
                assert any(item.shape == answer and holds(item) for item in scene.objects)
    assert asked > 400


def test_phrases_refer_to_one_object():
    for scene in SCENES[:20]:
        found = regions(scene, render(scene, 64).boxes())
        assert [region["phrases"][1] for region in found] == [f"the {item.colour} {item.shape}" for item in scene.objects]
        assert len({region["phrases"][1] for region in found}) == len(found)


def test_a_scene_depends_on_seed_split_and_index_alone():
    scene = sample_scene(7, "train", 3)
    random.seed(99)
    np.random.seed(99)
    sample_scene.cache_clear()
    assert sample_scene(7, "train", 3) == scene
    np.testing.assert_array_equal(render(scene, 48).image, render(scene, 48).image)
    others = {sample_scene(seed, split, index) for seed in (7, 8) for split in ("train", "val", "test") for index in range(50)}
    assert len(others) == 300


def test_another_resolution_is_the_same_picture():
    for scene in SCENES[:20]:
        large = Image.fromarray(render(scene, 128).image).resize((64, 64), Image.Resampling.BOX)
        difference = np.abs(np.asarray(large).astype(float) - render(scene, 64).image).mean()
        assert difference < 8, scene


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match="resolution: expected at least 16"):
        render(SCENES[0], 8)
