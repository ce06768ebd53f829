"""Semantic synthesis: masks as the classes of cells, and pictures that follow them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.scenes import CLASSES
from training.data.sources import SceneSource, open_split
from training.priors.codes import PictureFormat
from training.priors.drawing import Drawing
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.tasks.masks import cell_classes, painted
from training.tasks.semantic_synthesis import MASK, CellClassifier, SemanticSynthesis
from vqkit.models import ABSENT, Segment

FORMAT = PictureFormat(12, "crop", 3, 3, (8, 5), (2, 1))


@pytest.fixture
def masked(tmp_path):
    """A picture with a mask of classes 0, 1 and 4, one without a mask, and a test split whose mask also has class 5."""
    for split, classes in {"train": (0, 1, 4), "test": (0, 5)}.items():
        (tmp_path / split).mkdir()
        mask = np.repeat(np.array(classes, np.uint8), 12 // len(classes))[:, None].repeat(12, 1)
        for name in ("a", "b"):
            Image.new("RGB", (12, 12)).save(tmp_path / split / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / split / "mask.png")
        lines = [{"file_name": "b.png"}, {"file_name": "a.png", "mask": "mask.png"}]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("resolution, height, width", [(12, 3, 4), (12, 12, 12), (16, 1, 1), (10, 3, 4)])
def test_a_cell_has_the_class_of_most_of_its_pixels(resolution, height, width):
    mask = np.random.default_rng(0).integers(0, 6, (resolution, resolution)).astype(np.uint8)
    found = cell_classes(mask, height, width, 6).reshape(height, width)
    for row in range(height):
        for column in range(width):
            inside = [mask[y, x] for y in range(resolution) for x in range(resolution)
                      if y * height // resolution == row and x * width // resolution == column]
            counts = [inside.count(value) for value in range(6)]
            # the first of equal counts is the lowest class
            assert found[row, column] == counts.index(max(counts))


def test_the_mask_is_as_long_as_the_picture_and_lies_cell_on_code(masked, caplog):
    task = SemanticSynthesis(FORMAT, SemanticSynthesis.learn(open_split(masked, "train")))
    assert task.segments == (Segment("mask", 9, (5,)), Segment("image", 9, (8, 5), (2, 1), predicted=True))
    rows = task.rows(open_split(masked, "train"))
    assert rows.pictures.tolist() == [1] and rows.tokens[MASK].tolist() == [[0, 0, 0, 1, 1, 1, 4, 4, 4]]
    assert "left out 1 of 2 pictures whose mask cannot be read: " in caplog.text and "b.png" in caplog.text


def test_scenes_have_the_masks_that_they_are_drawn_with():
    source = SceneSource("val", size=3)
    task = SemanticSynthesis(PictureFormat(32, "crop", 8, 8, (16,), (1,)), SemanticSynthesis.learn(source))
    assert task.learned == {"classes": len(CLASSES)}
    for index, grid in enumerate(task.rows(source).tokens[MASK]):
        exact = source.read_mask(index, 32, "crop").reshape(8, 4, 8, 4).swapaxes(1, 2).reshape(64, 16)
        assert [np.bincount(cell).argmax() for cell in exact] == grid.tolist()


def test_data_without_masks_and_masks_of_other_classes_are_refused(masked, tmp_path):
    plain = tmp_path / "plain" / "train"
    plain.mkdir(parents=True)
    Image.new("RGB", (12, 12)).save(plain / "a.png")
    with pytest.raises(ValueError, match="train has no masks that can be read; expected a metadata.jsonl"):
        SemanticSynthesis.learn(open_split(tmp_path / "plain", "train"))
    task = SemanticSynthesis(FORMAT, {"classes": 5})
    with pytest.raises(ValueError, match="has no masks .*a.png: the data set gives it no mask"):
        task.rows(open_split(tmp_path / "plain", "train"))
    with pytest.raises(ValueError, match=r"a.png has a mask with class 5, expected 0 .. 4, the classes of training"):
        task.rows(open_split(masked, "test"))


def test_what_is_wrong_with_a_mask_is_said(masked):
    path, task = masked / "train" / "mask.png", SemanticSynthesis(FORMAT, {"classes": 5})
    Image.new("L", (12, 30)).save(path)
    lines = (masked / "train" / "metadata.jsonl").read_text().splitlines()
    (masked / "train" / "metadata.jsonl").write_text(lines[1])
    with pytest.raises(ValueError, match="train has no masks that can be read.*a.png: its mask has 12x30 pixels, which is another shape"):
        task.rows(open_split(masked, "train"))
    Image.new("RGB", (12, 12)).save(path)
    colours = path.read_bytes()
    Image.effect_noise((12, 12), 50).save(path)
    for content, reason in ((colours, "expected one channel with the number of a class, got RGB"), (b"no picture", "UnidentifiedImageError"),
                            (path.read_bytes()[:100], "OSError")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"train/a.png: its mask mask.png: ({reason})"):
            SemanticSynthesis.learn(open_split(masked, "train"))
    path.unlink()
    with pytest.raises(ValueError, match="train/a.png: its mask mask.png: FileNotFoundError"):
        SemanticSynthesis.learn(open_split(masked, "train"))


def test_a_mask_of_a_picture_that_cannot_be_read_is_left_out(masked, caplog):
    (masked / "train" / "c.png").write_bytes(b"no picture")
    with (masked / "train" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "c.png", "mask": "mask.png"}\n{"file_name": "b.png", "mask": null}')
    rows = SemanticSynthesis(FORMAT, {"classes": 5}).rows(open_split(masked, "train"))
    assert rows.pictures.tolist() == [1] and "left out 3 of 4 pictures" in caplog.text


def test_255_is_no_class(masked):
    mask = np.array((0, 255, 1), np.uint8).repeat(4)[:, None].repeat(12, 1)
    # the cell has 7 pixels of 255 of 16, then half
    mask[0, :4], mask[1, :3], mask[0:2, 4:8] = 255, 255, 255
    Image.fromarray(mask).save(masked / "train" / "mask.png")
    source = open_split(masked, "train")
    assert SemanticSynthesis.learn(source) == {"classes": 2}
    tokens = SemanticSynthesis(FORMAT, {"classes": 2}).rows(source).tokens[MASK][0]
    assert tokens.tolist() == [0, 0, 0, ABSENT, ABSENT, ABSENT, 1, 1, 1]
    shown = painted(tokens.view(3, 3), 2, 3)
    assert (shown[:, 1] == 0).all() and (shown[:, [0, 2]].amax(0) > 0).all()
    Image.fromarray(np.where(mask == 1, 255, mask)).save(masked / "train" / "mask.png")
    with pytest.raises(ValueError, match="have the one class 0, expected at least two; 255 is no class"):
        SemanticSynthesis.learn(source)
    Image.fromarray(np.full_like(mask, 255)).save(masked / "train" / "mask.png")
    with pytest.raises(ValueError, match="have no class in any cell, only 255"):
        SemanticSynthesis(FORMAT, {"classes": 2}).rows(source)


def test_cells_without_a_class_are_in_no_accuracy(prior_of, untrained_run, monkeypatch):
    """A split of which one cell of every picture is labelled is judged by these alone."""
    run = FinishedPrior.open(prior_of("semantic-synthesis", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=4)), run.task()
    masks = judged.examples.rows.tokens[MASK]
    masks[:, 1:] = ABSENT
    monkeypatch.setattr(CellClassifier, "classes", lambda self, pictures: masks.clamp(min=0))
    found = task.measure(judged)
    assert found["cell_accuracy"] == found["cell_accuracy_reconstructed"] == 1


def test_a_painted_mask_has_a_colour_for_each_class():
    grid = torch.arange(20).view(4, 5)
    colours = painted(grid, 20, 40)
    assert colours.shape == (3, 40, 40) and colours.dtype == torch.uint8
    assert len(colours.flatten(1).T.unique(dim=0)) == 20
    assert torch.equal(colours[:, ::10, ::8], colours[:, 9::10, 7::8]) and not torch.equal(colours, painted(grid.flip(0), 20, 40))


def test_cells_are_told_apart_by_colour_spread_and_place(prior_of, untrained_run):
    """On the real pictures; a classifier that always said the most frequent class would reach a quarter."""
    run = FinishedPrior.open(prior_of("semantic-synthesis", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=64)), run.task()
    few = CellClassifier.fit(judged, task, most=1024)
    pictures = torch.stack([torch.from_numpy(judged.source.read(index, 32, "crop").copy()) for index in range(64)]).permute(0, 3, 1, 2)
    told, masks = few.classes(pictures), judged.examples.rows.tokens[MASK]
    assert (told == masks).double().mean() > 0.7 > 2 * masks.flatten().bincount().max() / masks.numel()


def test_panels_show_the_mask_the_real_picture_and_the_generated_one(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("semantic-synthesis", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=4)), run.task()
    panels = task.panels(judged, [], 3)
    assert [len(panel.pictures) for panel in panels] == [3, 3, 3]
    for number, panel in enumerate(panels):
        mask, real, drawn = panel.pictures
        assert torch.equal(real.permute(1, 2, 0), torch.from_numpy(judged.source.read(number, 32, "crop").copy()))
        assert torch.equal(mask, painted(judged.examples.rows.tokens[MASK][number].view(8, 8), 20, 32))
        assert drawn.shape == real.shape and drawn.dtype == torch.uint8
    with pytest.raises(ValueError, match="prompt: semantic-synthesis takes masks of the data and no text, got 'a sea'"):
        task.panels(judged, ["a sea"], 1)


@pytest.mark.slow
def test_pictures_follow_their_masks_and_not_those_that_are_kept_from_them(prior_of, tokenizer_run):
    folder = prior_of("semantic-synthesis", tokenizer_run, 150, max_pictures=512)
    plain = evaluate_prior(PriorEvaluation(folder, pictures=128))
    assert plain["matching"] > 0.85
    # the masks of others are what chance agrees with, the tokenizer's own pictures what it can show
    assert plain["cell_accuracy_foreign"] < 0.25 and plain["cell_accuracy"] > 2 * plain["cell_accuracy_foreign"]
    assert plain["cell_accuracy"] < plain["cell_accuracy_reconstructed"] + 0.05
    free = evaluate_prior(PriorEvaluation(folder, pictures=128, sampling=Drawing(guidance=0.0)))
    assert free["cell_accuracy"] < 0.25
