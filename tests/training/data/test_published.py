"""Published data sets in small trees of the layouts in which they are distributed, whole and with a part missing."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from training.data.published import CELEBA_PARTS
from training.data.sources import DataError, open_split


def picture(path, value, mode="RGB", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value, 0, 0) if mode == "RGB" else value).save(path, "PNG")


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def cub(root):
    root = root / "CUB_200_2011"
    text(root / "images.txt", "1 001.Black_footed_Albatross/a.jpg\n2 001.Black_footed_Albatross/b.jpg\n3 002.Laysan_Albatross/c.jpg\n")
    text(root / "train_test_split.txt", "1 1\n2 0\n3 1\n")
    for number, name in enumerate(("001.Black_footed_Albatross/a", "001.Black_footed_Albatross/b", "002.Laysan_Albatross/c")):
        picture(root / f"images/{name}.jpg", 10 * number)
        text(root / f"text_c10/{name}.txt", f"a bird {name[-1]}\na beak {name[-1]}\n")


def celeba_hq(root, partition=True):
    for number in range(10):
        picture(root / f"CelebA-HQ-img/{number}.jpg", number)
        text(root / f"celeba-caption/{number}.txt", f"face {number}\n")
    for part, size in (("skin", 8), ("hair", 4)):
        mask = np.zeros((8, 8, 3), np.uint8)
        mask[:size] = 255
        path = root / f"CelebAMask-HQ-mask-anno/0/00009_{part}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    if partition:
        lines = [f"{number} {100 + number} {100 + number:06d}.jpg" for number in range(10)]
        text(root / "CelebA-HQ-to-CelebA-mapping.txt", "idx orig_idx orig_file\n" + "\n".join(lines))
        text(root / "list_eval_partition.txt", "\n".join(f"{100 + number:06d}.jpg {(0, 0, 1, 2, 2)[number // 2]}" for number in range(10)))


def ade20k(root):
    for split, value in (("training", 3), ("validation", 4)):
        picture(root / f"images/{split}/ADE_{split}_1.jpg", value)
        picture(root / f"annotations/{split}/ADE_{split}_1.png", value, "L")
    text(root / "sceneCategories.txt", "ADE_training_1 airport_terminal\nADE_validation_1 bakery\n")


def coco(root, year=2014):
    for split in ("train", "val"):
        images = [{"id": 7, "file_name": f"{split}_7.jpg"}, {"id": 8, "file_name": f"{split}_8.jpg"}]
        annotations = [{"image_id": 7, "caption": f"first {split} "}, {"image_id": 8, "caption": "second"}, {"image_id": 7, "caption": "again"}]
        text(root / f"annotations/captions_{split}{year}.json", json.dumps({"images": images, "annotations": annotations}))
        for image in images:
            picture(root / f"{split}{year}/{image['file_name']}", image["id"])


def textcaps(root):
    for split in ("train", "val"):
        entries = [{"image_id": f"{split}1", "caption_str": caption} for caption in ("a sign", "a stop sign")]
        text(root / f"TextCaps_0.1_{split}.json", json.dumps({"data": entries}))
        picture(root / f"train_images/{split}1.jpg", 5)


def imagenet(root, below="ILSVRC/Data/CLS-LOC"):
    picture(root / below / "train/n01440764/n01440764_1.JPEG", 1)
    picture(root / below / "train/n01443537/n01443537_1.JPEG", 2)
    picture(root / below / "val/ILSVRC2012_val_00000001.JPEG", 3)
    text(root / "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4\n")


def records(root, split):
    source = open_split(root, split)
    assert all(source.read(index, 8, "crop").shape == (8, 8, 3) for index in range(len(source)))
    return source, [source.record(index) for index in range(len(source))]


def test_cub(tmp_path):
    cub(tmp_path)
    source, found = records(tmp_path, "train")
    assert source.name == "CUB-200-2011/train"
    assert [record["label"] for record in found] == ["Black_footed_Albatross", "Laysan_Albatross"]
    assert [record["captions"] for record in found] == [["a bird a", "a beak a"], ["a bird c", "a beak c"]]
    assert [record["captions"][0] for record in records(tmp_path, "test")[1]] == ["a bird b"]
    with pytest.raises(DataError, match="CUB-200-2011 has the splits train, test, got 'val'"):
        open_split(tmp_path, "val")
    (tmp_path / "CUB_200_2011/text_c10/001.Black_footed_Albatross/b.txt").unlink()
    with pytest.raises(DataError, match="captions of one picture are missing: .*b.txt"):
        open_split(tmp_path, "test")
    (tmp_path / "CUB_200_2011/images.txt").unlink()
    with pytest.raises(DataError, match="missing CUB-200-2011's list of pictures: expected .*images.txt"):
        open_split(tmp_path, "train")


def test_celeba_hq(tmp_path):
    celeba_hq(tmp_path)
    assert [len(records(tmp_path, split)[1]) for split in ("train", "val", "test")] == [4, 2, 4]
    source, found = records(tmp_path, "test")
    assert found[-1]["captions"] == ["face 9"]
    hair, skin = CELEBA_PARTS.index("hair") + 1, CELEBA_PARTS.index("skin") + 1
    assert source.read_mask(3, 8, "crop")[:, 0].tolist() == [hair] * 4 + [skin] * 4
    with pytest.raises(DataError, match="CelebA-HQ-img/6.jpg: the data set gives it no mask"):
        source.read_mask(0, 8, "crop")


def test_celeba_hq_without_its_partition(tmp_path):
    celeba_hq(tmp_path, partition=False)
    assert [record["file_name"] for record in records(tmp_path, "test")[1]] == ["CelebA-HQ-img/9.jpg"]
    assert len(records(tmp_path, "train")[1]) == 9
    with pytest.raises(DataError, match="val needs .*mapping.txt and .*list_eval_partition.txt"):
        open_split(tmp_path, "val")


def test_ade20k(tmp_path):
    ade20k(tmp_path)
    source, found = records(tmp_path, "train")
    assert found[0]["label"] == "airport_terminal" and (source.read_mask(0, 8, "stretch") == 3).all()
    assert [records(tmp_path, split)[1][0]["label"] for split in ("val", "test")] == ["bakery"] * 2
    (tmp_path / "annotations/training/ADE_training_1.png").unlink()
    with pytest.raises(DataError, match="mask of one picture is missing: .*ADE_training_1.png"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco(tmp_path, year):
    coco(tmp_path, year)
    source, found = records(tmp_path, "train")
    assert [record["captions"] for record in found] == [["first train", "again"], ["second"]]
    assert [record["captions"][0] for record in records(tmp_path, "val")[1]] == ["first val", "second"]
    (tmp_path / f"annotations/captions_train{year}.json").unlink()
    with pytest.raises(DataError, match="missing MS-COCO's captions: expected .*captions_train2014.json or "):
        open_split(tmp_path, "train")


def test_textcaps(tmp_path):
    textcaps(tmp_path)
    assert records(tmp_path, "train")[1] == [{"file_name": "train_images/train1.jpg", "captions": ["a sign", "a stop sign"]}]
    assert records(tmp_path, "test")[1][0]["file_name"] == "train_images/val1.jpg"
    (tmp_path / "TextCaps_0.1_val.json").unlink()
    with pytest.raises(DataError, match="missing TextCaps's captions: expected .*TextCaps_0.1_val.json"):
        open_split(tmp_path, "val")
    shutil.rmtree(tmp_path / "train_images")
    with pytest.raises(DataError, match="missing TextCaps's pictures: expected .*train_images or .*train_val_images/train_images"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("below", ["ILSVRC/Data/CLS-LOC", "."])
def test_imagenet(tmp_path, below):
    imagenet(tmp_path, below)
    assert [record["label"] for record in records(tmp_path, "train")[1]] == ["n01440764", "n01443537"]
    assert records(tmp_path, "val")[1][0]["label"] == "n01443537"
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match="missing the classes of ImageNet's validation pictures.*: expected .*LOC_val_solution.csv"):
        open_split(tmp_path, "val")


def test_other_folders_are_read_as_before(tmp_path):
    picture(tmp_path / "train/cats/a.png", 1)
    assert open_split(tmp_path, "train").record(0) == {"file_name": "cats/a.png", "label": "cats"}
