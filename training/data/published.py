"""The published data sets in the layouts in which they are distributed; each becomes records of pictures below one folder.

A layout is known by a file or folder that only it has. What a layout lacks is an error that names the file and where it goes; a split
that the data set does not have is an error that names those it has. Nothing is copied or converted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class DataError(ValueError):
    """The data set, or a picture in it, is not what was asked for; the message names the file."""


@dataclass(frozen=True)
class Layout:
    """One published data set.

    name: as its authors call it.  folder: what it unpacks to.  marks: files or folders, any of which makes a folder this data set.
    splits: our name of a split to theirs.  read: (root, their split) -> records, with file names below root.
    """

    name: str
    folder: str
    marks: tuple[str, ...]
    splits: dict[str, str]
    read: Callable[[Path, str], list[dict]]


def find_layout(path: Path) -> tuple[Layout, Path] | None:
    """The published data set that lies at a path, unpacked into it or below it under its own name, and its folder; None for others."""
    for layout in LAYOUTS:
        for folder in (path, path / layout.folder):
            if any((folder / mark).exists() for mark in layout.marks):
                return layout, folder
    return None


def records(layout: Layout, root: Path, split: str) -> list[dict]:
    """The split's records: ``file_name`` below root, and ``captions``, ``label``, ``mask`` or ``part_masks`` as the data set has them.

    Raises DataError where the split or a part of the data set is missing.
    """
    if split not in layout.splits:
        raise DataError(f"data: {layout.name} has the splits {', '.join(layout.splits)}, got {split!r}")
    return layout.read(root, layout.splits[split])


def _required(root: Path, *places: str, what: str) -> Path:
    """The first of these places that exists. Raises DataError naming all."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"data: missing {what}: expected {' or '.join(str(root / place) for place in places)}")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _table(path: Path) -> dict[str, str]:
    """Lines of "key value"."""
    return {key: value for key, value in (line.split(maxsplit=1) for line in _lines(path))}


def _cub(root: Path, split: str) -> list[dict]:
    _required(root, "images", what="CUB-200-2011's pictures")
    names = _table(_required(root, "images.txt", what="CUB-200-2011's list of pictures"))
    training = _table(_required(root, "train_test_split.txt", what="CUB-200-2011's split"))
    # Reed et al.'s ten captions a picture are a download of their own.
    text = next((place for place in ("text_c10", "text", "captions") if (root / place).is_dir()), None)
    found = []
    for number, name in names.items():
        if training[number] != split:
            continue
        record = {"file_name": f"images/{name}", "label": name.split("/", 1)[0].split(".", 1)[-1]}
        if text is not None:
            captions = root / text / Path(name).with_suffix(".txt")
            if not captions.is_file():
                raise DataError(f"data: CUB-200-2011's captions of one picture are missing: expected {captions}")
            record["captions"] = [line.strip() for line in _lines(captions)]
        found.append(record)
    return found


# In the order in which the data set's authors paint them, later ones over earlier ones; class 0 is what none covers.
CELEBA_PARTS = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair", "hat",
                "ear_r", "neck_l", "neck", "cloth")
_CELEBA_MASKS_A_FOLDER = 2000


def _celeba_hq(root: Path, split: str) -> list[dict]:
    pictures = _required(root, "CelebA-HQ-img", what="CelebA-HQ's pictures")
    numbers = sorted(int(path.stem) for path in pictures.glob("*.jpg"))
    wanted = _celeba_split(root, numbers, split)
    text = next((place for place in ("celeba-caption", "text/celeba-caption", "text") if (root / place).is_dir()), None)
    masks = root / "CelebAMask-HQ-mask-anno"
    found = []
    for number in wanted:
        record = {"file_name": f"CelebA-HQ-img/{number}.jpg"}
        if text is not None:
            captions = root / text / f"{number}.txt"
            if not captions.is_file():
                raise DataError(f"data: CelebA-HQ's captions of one picture are missing: expected {captions}")
            record["captions"] = [line.strip() for line in _lines(captions)]
        if masks.is_dir():
            below = f"CelebAMask-HQ-mask-anno/{number // _CELEBA_MASKS_A_FOLDER}/{number:05d}"
            parts = {str(label): f"{below}_{part}.png" for label, part in enumerate(CELEBA_PARTS, start=1)}
            parts = {label: name for label, name in parts.items() if (root / name).is_file()}
            record |= {"part_masks": parts} if parts else {}
        found.append(record)
    return found


def _celeba_split(root: Path, numbers: list[int], split: str) -> Iterable[int]:
    """CelebA's own split through the mapping file; without those two files the last tenth is the test set (our reading)."""
    mapping, partition = root / "CelebA-HQ-to-CelebA-mapping.txt", root / "list_eval_partition.txt"
    if mapping.is_file() and partition.is_file():
        part_of = _table(partition)
        original = {int(fields[0]): fields[2] for fields in (line.split() for line in _lines(mapping)[1:])}
        return [number for number in numbers if part_of[original[number]] == split]
    if split == "1":
        raise DataError(f"data: CelebA-HQ's split val needs {mapping} and {partition}; without them there are train and test")
    first_of_test = len(numbers) - len(numbers) // 10
    return numbers[first_of_test:] if split == "2" else numbers[:first_of_test]


def _ade20k(root: Path, split: str) -> list[dict]:
    pictures = _required(root, f"images/{split}", what="ADE20K's pictures")
    annotations = _required(root, f"annotations/{split}", what="ADE20K's masks")
    scene_of = _table(root / "sceneCategories.txt") if (root / "sceneCategories.txt").is_file() else {}
    found = []
    for path in sorted(pictures.glob("*.jpg")):
        mask = annotations / f"{path.stem}.png"
        if not mask.is_file():
            raise DataError(f"data: ADE20K's mask of one picture is missing: expected {mask}")
        record = {"file_name": f"images/{split}/{path.name}", "mask": f"annotations/{split}/{mask.name}"}
        found.append(record | ({"label": scene_of[path.stem]} if path.stem in scene_of else {}))
    return found


def _coco(root: Path, split: str) -> list[dict]:
    places = [f"annotations/captions_{split}{year}.json" for year in (2014, 2017)]
    path = _required(root, *places, what="MS-COCO's captions")
    folder = path.stem.removeprefix("captions_")
    _required(root, folder, what="MS-COCO's pictures")
    held = json.loads(path.read_text(encoding="utf-8"))
    captions: dict[int, list[str]] = {}
    for annotation in held["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    return [{"file_name": f"{folder}/{image['file_name']}", "captions": captions.get(image["id"], [])} for image in held["images"]]


def _textcaps(root: Path, split: str) -> list[dict]:
    path = _required(root, f"TextCaps_0.1_{split}.json", what="TextCaps's captions")
    # Its validation pictures are of OpenImages's training set, and lie in that folder.
    folder = _required(root, "train_images", "train_val_images/train_images", what="TextCaps's pictures").relative_to(root)
    captions: dict[str, list[str]] = {}
    for entry in json.loads(path.read_text(encoding="utf-8"))["data"]:
        captions.setdefault(entry["image_id"], []).append(entry["caption_str"].strip())
    return [{"file_name": f"{folder}/{image}.jpg", "captions": found} for image, found in captions.items()]


def _imagenet(root: Path, split: str) -> list[dict]:
    below = "ILSVRC/Data/CLS-LOC" if (root / "ILSVRC").is_dir() else "."
    folder = _required(root, f"{below}/{split}", what="ImageNet's pictures")
    named = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if named:
        return [{"file_name": str(path.relative_to(root)), "label": wnid.name} for wnid in named for path in sorted(wnid.glob("*.JPEG"))]
    label_of = _imagenet_validation_labels(root)
    return [{"file_name": str(path.relative_to(root)), "label": label_of[path.stem]} for path in sorted(folder.glob("*.JPEG"))]


def _imagenet_validation_labels(root: Path) -> dict[str, str]:
    """The class of each validation picture by its stem, from what Kaggle distributes beside pictures that lie in one folder."""
    path = _required(root, "LOC_val_solution.csv", what="the classes of ImageNet's validation pictures, which lie in one folder")
    with path.open(newline="") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


LAYOUTS = (
    Layout("CUB-200-2011", "CUB_200_2011", ("train_test_split.txt",), {"train": "1", "test": "0"}, _cub),
    Layout("CelebA-HQ", "CelebAMask-HQ", ("CelebA-HQ-img",), {"train": "0", "val": "1", "test": "2"}, _celeba_hq),
    # The test sets of the others come without masks, captions or classes: the papers report the validation set, which is both here.
    Layout("ADE20K", "ADEChallengeData2016", ("objectInfo150.txt", "annotations/training", "annotations/validation"),
           {"train": "training", "val": "validation", "test": "validation"}, _ade20k),
    Layout("MS-COCO", "coco", tuple(f"annotations/captions_{split}{year}.json" for split in ("train", "val") for year in (2014, 2017)),
           {"train": "train", "val": "val", "test": "val"}, _coco),
    Layout("TextCaps", "textcaps", ("TextCaps_0.1_train.json", "TextCaps_0.1_val.json"), {"train": "train", "val": "val", "test": "val"},
           _textcaps),
    Layout("ImageNet", "imagenet", ("ILSVRC", "LOC_val_solution.csv", "train/n01440764"), {"train": "train", "val": "val", "test": "val"},
           _imagenet),
)
