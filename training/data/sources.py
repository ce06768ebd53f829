"""Where pictures and what is known of them come from: folders, zips, class folders, or built-in scenes.

A data set is a folder (or one zip) with a sub-folder or a zip for each split, ``train``, ``val``, ``test``. A split holds pictures and a
``metadata.jsonl`` (a line a picture: ``file_name``, and ``captions``, ``mask``, ``regions``, ``questions`` as known), or one folder a
class, or pictures alone. Published data sets are read in the layouts in which they are distributed, see `published`. The data set
named ``scenes`` is drawn, not read.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from training.data import published, scenes
from training.data.published import DataError
from training.data.rendering import Rendering, render

SPLITS = ("train", "val", "test")
FITS = ("crop", "stretch")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SCENES_IN_SPLIT = {"train": 8192, "val": 512, "test": 512}
# As data sets mark pixels of no class.
UNLABELLED = 255
_logger = logging.getLogger("training")


class Source(Protocol):
    """One split. `read` and `read_mask` return square arrays of `resolution` pixels: (R, R, 3) uint8 and (R, R) uint8.

    `mask_classes` is one more than the highest class in any mask, 255 being none, 0 without masks. `limited` is the split with at most so
    many pictures, all of them for None: the first, or of pictures with a class, which may lie class by class, as many spread evenly.
    """

    name: str

    def __len__(self) -> int: ...

    def picture_name(self, index: int) -> str: ...

    def record(self, index: int) -> dict: ...

    def read(self, index: int, resolution: int, fit: str) -> np.ndarray: ...

    def read_mask(self, index: int, resolution: int, fit: str) -> np.ndarray: ...

    def mask_classes(self) -> int: ...

    def limited(self, count: int | None) -> Source: ...


def captions_of(source: Source, index: int) -> list[str]:
    """The captions of a picture that say something."""
    return [caption for caption in source.record(index).get("captions", ()) if caption.strip()]


def has_captions(source: Source) -> bool:
    """Whether any picture has a caption that says something."""
    return any(captions_of(source, index) for index in range(len(source)))


def open_split(data: str | os.PathLike, split: str, *, seed: int = 0) -> Source:
    """The split of a data set given by its path, or of ``scenes``, whose pictures depend on `seed`.

    Raises DataError (a ValueError) where the path, the split or the pictures are missing, naming what was found instead.
    """
    if str(data) == "scenes":
        return SceneSource(split, seed)
    path = Path(data)
    if not path.exists():
        raise DataError(f"data: expected a folder, a zip, or the name 'scenes'; there is no {path}")
    if path.is_file():
        return PictureSource(_inside(ZipTree(path), split, path), f"{path}/{split}")
    if (found := published.find_layout(path)) is not None:
        layout, folder = found
        return PictureSource(FolderTree(folder), f"{layout.name}/{split}", published.records(layout, folder, split))
    if (path / split).is_dir():
        return PictureSource(FolderTree(path / split), str(path / split))
    if (path / f"{split}.zip").is_file():
        tree = ZipTree(path / f"{split}.zip")
        wrapped = all(name.startswith(f"{split}/") for name in tree.names())
        return PictureSource(tree.below(split) if wrapped else tree, str(path / f"{split}.zip"))
    found = [name for name in SPLITS if (path / name).is_dir() or (path / f"{name}.zip").is_file()]
    raise DataError(f"data: no split {split!r} in {path}: expected {path / split} or {split}.zip; found {found or 'no split at all'}")


def _inside(tree: ZipTree, split: str, path: Path) -> ZipTree:
    tops = sorted({name.split("/", 1)[0] for name in tree.names() if "/" in name})
    if split not in tops:
        raise DataError(f"data: no split {split!r} in {path}: expected a folder {split}/ in the zip; found {tops or 'none'}")
    return tree.below(split)


class FolderTree:
    """The files below a folder, by their paths with forward slashes."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def folders(self) -> set[str]:
        """The folders at the top, empty ones too."""
        return {path.name for path in self.root.iterdir() if path.is_dir()}

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class ZipTree:
    """The files in a zip below a prefix. Every process opens the zip for itself: a forked file handle would share its position."""

    def __init__(self, path: Path, prefix: str = ""):
        self.path, self.prefix = path, prefix
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        if not zipfile.is_zipfile(path):
            raise DataError(f"data: {path} is neither a folder nor a readable zip")

    def below(self, folder: str) -> ZipTree:
        return ZipTree(self.path, f"{self.prefix}{folder}/")

    def names(self) -> list[str]:
        names = (name for name in self._archive().namelist() if not name.endswith("/"))
        return sorted(name[len(self.prefix):] for name in names if name.startswith(self.prefix))

    def folders(self) -> set[str]:
        """The folders at the top, empty ones too."""
        below = (name[len(self.prefix):] for name in self._archive().namelist() if name.startswith(self.prefix))
        return {name.split("/", 1)[0] for name in below if "/" in name}

    def read(self, name: str) -> bytes:
        try:
            return self._archive().read(self.prefix + name)
        except KeyError as missing:
            raise FileNotFoundError(f"{self.path} holds no {self.prefix + name}") from missing

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def __getstate__(self) -> dict:
        return {"path": self.path, "prefix": self.prefix, "_opened": None}


class PictureSource:
    """A split of picture files. `records`: as given, else those of ``metadata.jsonl``, else ``{"file_name", "label"}`` from class folders.

    Raises DataError where there is no picture, a line of metadata.jsonl is malformed, or a class folder is empty; a class folder with
    other files only is named in a warning.
    """

    def __init__(self, tree: FolderTree | ZipTree, name: str, records: list[dict] | None = None):
        self.tree, self.name = tree, name
        names = tree.names() if records is None else []
        if records is not None:
            self.records = records
        elif "metadata.jsonl" in names:
            self.records = list(_metadata(tree.read("metadata.jsonl"), f"{name}/metadata.jsonl"))
        else:
            pictures = [path for path in names if PurePosixPath(path).suffix.lower() in SUFFIXES]
            self.records = [{"file_name": path, **({"label": path.split("/", 1)[0]} if "/" in path else {})} for path in pictures]
            self._check_class_folders(names)
        if not self.records:
            raise DataError(f"data: no pictures in {name}: expected metadata.jsonl or picture files ({', '.join(SUFFIXES)})")

    def _check_class_folders(self, files: list[str]) -> None:
        """A class whose folder has no picture would vanish from the classes without a word."""
        classes = {record["label"] for record in self.records if "label" in record}
        missing = sorted(name for name in self.tree.folders() - classes if not name.startswith(".")) if classes else []
        empty = [name for name in missing if not any(file.startswith(f"{name}/") for file in files)]
        if empty:
            raise DataError(f"data: empty class folders in {self.name}: expected pictures in {', '.join(empty)} (links are not "
                            "followed), or no such folder")
        if missing:
            _logger.warning("%s: no pictures in the folders %s, which are no classes", self.name, ", ".join(missing))

    def __len__(self) -> int:
        return len(self.records)

    def picture_name(self, index: int) -> str:
        return f"{self.name}/{self.records[index]['file_name']}"

    def record(self, index: int) -> dict:
        return self.records[index]

    def limited(self, count: int | None) -> PictureSource:
        total = len(self)
        count = total if count is None else min(count, total)
        spread = any("label" in record for record in self.records)
        return PictureSource(self.tree, self.name, [self.records[number * total // count if spread else number] for number in range(count)])

    def read(self, index: int, resolution: int, fit: str) -> np.ndarray:
        """Decode one picture. Raises DataError naming it where it is missing, damaged or not a picture."""
        with _named(self.picture_name(index)):
            picture = ImageOps.exif_transpose(self._open(self.records[index]["file_name"])).convert("RGB")
        return np.asarray(_fitted(picture, resolution, fit, Image.Resampling.LANCZOS))

    def read_mask(self, index: int, resolution: int, fit: str) -> np.ndarray:
        """Class of each pixel, cut as the picture is.

        Raises DataError naming the picture where it has no mask or one of another shape, and the file where that is missing, damaged or
        not of one channel.
        """
        mask = self._mask(index)
        if mask is None:
            raise DataError(f"{self.picture_name(index)}: the data set gives it no mask")
        self._check_shape(index, mask)
        return np.asarray(_fitted(mask, resolution, fit, Image.Resampling.NEAREST))

    def _check_shape(self, index: int, mask: Image.Image) -> None:
        """A mask may be of another size, as CelebA-HQ's are, but has to cover the picture to the pixel."""
        with _named(self.picture_name(index)):
            (width, height), (across, down) = ImageOps.exif_transpose(self._open(self.records[index]["file_name"])).size, mask.size
        if abs(across * height - down * width) > max(width, height, across, down):
            raise DataError(f"{self.picture_name(index)}: its mask has {across}x{down} pixels, which is another shape than {width}x{height}")

    def mask_classes(self) -> int:
        """Over all pixels as they are stored: no class is lost to a lower resolution."""
        masks = (np.asarray(mask) for index in range(len(self)) if (mask := self._mask(index)) is not None)
        return max((len(np.bincount(mask[mask != UNLABELLED])) for mask in masks), default=0)

    def _mask(self, index: int) -> Image.Image | None:
        record = self.records[index]
        if "part_masks" in record:
            return self._painted(index, record["part_masks"])
        if (name := record.get("mask")) is None:
            return None
        with _named(f"{self.picture_name(index)}: its mask {name}"):
            mask = self._open(name)
            mask.load()
        if len(mask.getbands()) > 1 or mask.mode == "F":
            raise DataError(f"{self.picture_name(index)}: its mask {name}: expected one channel with the number of a class, got {mask.mode}")
        return mask

    def _painted(self, index: int, parts: dict[str, str]) -> Image.Image:
        """One mask from one picture a class, those of higher classes over those of lower ones."""
        painted = None
        for label, name in sorted(parts.items(), key=lambda part: int(part[0])):
            with _named(f"{self.picture_name(index)}: its mask {name}"):
                covered = np.asarray(self._open(name).convert("L")) > 127
                painted = np.zeros(covered.shape, np.uint8) if painted is None else painted
                painted[covered] = int(label)
        return Image.fromarray(painted)

    def _open(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.tree.read(name)))


class SceneSource:
    """A split of the built-in scenes, `SCENES_IN_SPLIT` of them."""

    def __init__(self, split: str, seed: int = 0, size: int | None = None):
        if split not in SCENES_IN_SPLIT:
            raise DataError(f"split: scenes has {', '.join(SCENES_IN_SPLIT)}, got {split!r}")
        self.split, self.seed, self.name = split, seed, f"scenes/{split}"
        self.size = SCENES_IN_SPLIT[split] if size is None else size

    def __len__(self) -> int:
        return self.size

    def picture_name(self, index: int) -> str:
        return f"{self.name}/{index}"

    def record(self, index: int) -> dict:
        """The background as label, captions and questions; regions have boxes in pixels, so they come from `regions`."""
        scene = self._scene(index)
        return {"file_name": f"{index}", "label": scene.background, "captions": scenes.captions(scene), "questions": scenes.questions(scene)}

    def mask_classes(self) -> int:
        return len(scenes.CLASSES)

    def limited(self, count: int | None) -> SceneSource:
        return SceneSource(self.split, self.seed, self.size if count is None else min(count, self.size))

    def regions(self, index: int, resolution: int) -> list[dict]:
        """Referring phrases with boxes in pixels of a picture of this resolution."""
        return scenes.regions(self._scene(index), self._render(index, resolution).boxes())

    def read(self, index: int, resolution: int, fit: str) -> np.ndarray:
        return self._render(index, resolution).image

    def read_mask(self, index: int, resolution: int, fit: str) -> np.ndarray:
        return self._render(index, resolution).mask

    def _scene(self, index: int) -> scenes.Scene:
        return scenes.sample_scene(self.seed, self.split, index)

    def _render(self, index: int, resolution: int) -> Rendering:
        return render(self._scene(index), resolution)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Anything that reading raises, as a DataError that begins with what is read."""
    try:
        yield
    # A damaged file makes Pillow's decoders raise anything from OSError to SyntaxError, zipfile BadZipFile.
    except Exception as broken:
        raise DataError(f"{what}: {type(broken).__name__}: {broken}") from broken


def _metadata(text: bytes, name: str) -> Iterable[dict]:
    for number, line in enumerate(text.decode("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as broken:
            raise DataError(f"{name}, line {number}: not JSON: {broken}") from broken
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            raise DataError(f"{name}, line {number}: expected an object with a string file_name, got {line[:80]}")
        # null is what tables without a value become.
        captions = record.pop("captions", None)
        if captions is not None:
            if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
                raise DataError(f"{name}, line {number}: captions: expected a list of strings, got {json.dumps(captions)[:80]}")
            record["captions"] = captions
        yield record


def _fitted(picture: Image.Image, resolution: int, fit: str, resample: Image.Resampling) -> Image.Image:
    """A square of `resolution` pixels: the largest centred square scaled ("crop"), or the whole squeezed ("stretch")."""
    size = (resolution, resolution)
    if picture.size == size:
        return picture
    return ImageOps.fit(picture, size, resample) if fit == "crop" else picture.resize(size, resample)
