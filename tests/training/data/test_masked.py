"""Masks beside pictures: cut, mirrored and kept alike; what SGC-VQGAN learns from them, and data that do not fit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import checkpoint
from training.__main__ import main
from training.data.batches import PictureDataset, TrainingOrder, load
from training.data.masked import MaskedPictureDataset
from training.data.sources import open_split
from training.tokenizer import train

KEYS = [(epoch, index) for epoch in range(4) for index in range(20)]


@pytest.fixture
def masked(pictures):
    """The pictures, each with a mask of its size that can be told from the picture: class 1 where red is above half; 200 in a corner."""
    for split in ("train", "val", "test"):
        folder = pictures / split
        (folder / "masks").mkdir()
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        for number, line in enumerate(lines):
            picture = np.asarray(Image.open(folder / line["file_name"]))
            mask = (picture[..., 0] > 127).astype(np.uint8)
            mask[:2, 4:10] = 200
            line["mask"] = f"masks/{number}.png"
            Image.fromarray(mask).save(folder / line["mask"])
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return pictures


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_masks_are_cut_and_mirrored_as_their_pictures_are(masked, budget):
    source = open_split(masked, "train")
    # Of 16x16 pixels, so that "crop" cuts 24x16 and rescales nothing.
    options = {"flip_seed": 3, "memory_budget": budget}
    dataset = MaskedPictureDataset(source, 16, classes=2, unlabelled=200, **options)
    for _ in range(2):
        images, indices, masks = dataset.__getitems__(KEYS)
        plain, plain_indices = PictureDataset(source, 16, replace_broken=True, **options).__getitems__(KEYS)
        assert torch.equal(images, plain) and torch.equal(indices, plain_indices)
        known = masks >= 0
        assert torch.equal(masks[known] == 1, (images[:, 0] > 127)[known])
        assert (~known).sum((1, 2)).tolist() == [2 * 6] * len(KEYS)
    assert masks.dtype == torch.int16 and dataset.kept_in_memory == bool(budget) and dataset.bytes_needed == 20 * 16 * 16 * 4
    assert any(dataset.flips(*key) for key in KEYS) and not all(dataset.flips(*key) for key in KEYS)


def test_workers_share_masks_and_broken_pictures_are_replaced_with_theirs(masked):
    (masked / "train" / "05.png").write_bytes(b"broken")
    dataset = MaskedPictureDataset(open_split(masked, "train"), 16, classes=2, unlabelled=200, flip_seed=0)
    order = TrainingOrder(20, 4, 0, last=10)
    once, twice = (list(load(dataset, order, workers, torch.device("cpu"))) for workers in (0, 2))
    for (images, indices, masks), other in zip(once, twice, strict=True):
        assert 5 not in indices.tolist()
        assert all(torch.equal(one, two) for one, two in zip((images, indices, masks), other, strict=True))
        assert torch.equal((masks == 1)[masks >= 0], (images[:, 0] > 127)[masks >= 0])


def test_training_teaches_codes_their_classes_and_resumes(masked, tiny):
    settings = tiny("sgc-vqgan", unlabelled=200, steps=6, save_every=2, disc_start=3)
    undisturbed = train("sgc-vqgan", settings)
    again = dataclasses.replace(settings, out=settings.out.with_name("stopped"))
    train("sgc-vqgan", dataclasses.replace(again, steps=4))
    train("sgc-vqgan", again)
    one, other = (load_file(checkpoint.latest(folder) / "state.safetensors") for folder in (undisturbed, again.out))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    # Three classes were allowed, and two are in the masks; a position of 8x8 pixels has the class of most of them.
    counts = one["model/quantizer.codebook.class_counts"]
    assert (counts.sum(0) > 0).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="unlabelled: was 200, now None"):
        train("sgc-vqgan", dataclasses.replace(settings, unlabelled=None))


def test_scenes_have_masks(tiny):
    model = dataclasses.replace(tiny("sgc-vqgan").model, classes=20)
    folder = train("sgc-vqgan", dataclasses.replace(tiny("sgc-vqgan", data="scenes", steps=2), model=model))
    counts = load_file(checkpoint.latest(folder) / "state.safetensors")["model/quantizer.codebook.class_counts"]
    assert (counts.sum(0) > 0).sum() >= 3


def test_data_that_do_not_fit_are_named(masked, pictures, tiny, tmp_path, capsys):
    with pytest.raises(ValueError, match="00.png: its mask has class 200, expected 0..2; see --model.classes, or --unlabelled 200"):
        train("sgc-vqgan", tiny("sgc-vqgan"))
    with pytest.raises(ValueError, match="unlabelled: expected 0..255, got 300"):
        tiny("sgc-vqgan", unlabelled=300)
    # Half the size is no other shape.
    path = masked / "train/masks/0.png"
    Image.fromarray(np.asarray(Image.open(path))[::2, ::2]).save(path)
    MaskedPictureDataset(open_split(masked, "train"), 16, classes=2, unlabelled=200)
    Image.fromarray(np.zeros((24, 16), np.uint8)).save(path)
    with pytest.raises(ValueError, match="00.png: its mask has 16x24 pixels, which is another shape than 24x16"):
        train("sgc-vqgan", tiny("sgc-vqgan", unlabelled=200))
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match="00.png: its mask masks/0.png: expected one channel with the number of a class, got RGB"):
        train("sgc-vqgan", tiny("sgc-vqgan", unlabelled=200))
    Image.fromarray(np.zeros((16, 24), np.uint16)).save(path)
    with pytest.raises(ValueError, match="00.png: expected a mask with one byte of class a pixel, got "):
        train("sgc-vqgan", tiny("sgc-vqgan", unlabelled=200))
    (masked / "train" / "metadata.jsonl").unlink()
    with pytest.raises(SystemExit):
        main(["tokenizer", "sgc-vqgan", "--data", str(masked), "--out", str(tmp_path / "run"), "--resolution", "16", "--device", "cpu"])
    assert "the data set gives it no mask" in capsys.readouterr().err and not (tmp_path / "run/config.json").exists()
