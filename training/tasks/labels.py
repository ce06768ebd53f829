"""Classes of the pictures of a split: the folders they lie in, or what their records say."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source
from training.spelling import did_you_mean


def learn_classes(source: Source) -> dict:
    """The names of the classes, sorted. Raises ValueError where there are fewer than two."""
    names = sorted({name for index in range(len(source)) if (name := label_of(source, index)) is not None})
    if not names:
        raise _no_classes(source)
    if len(names) == 1:
        raise ValueError(f"data: {source.name} has the one class {names[0]!r}, expected at least two")
    return {"classes": names}


def label_of(source: Source, index: int) -> str | None:
    """The class of a picture, where it has one."""
    label = source.record(index).get("label")
    return None if label is None else str(label)


def label_rows(source: Source, classes: list[str]) -> tuple[Tensor, Tensor]:
    """int64 (N,) the pictures that have a class, and (N,) their classes by number.

    Raises ValueError where no picture has one, or one is not of these classes.
    """
    numbers, found = {name: number for number, name in enumerate(classes)}, []
    for index in range(len(source)):
        label = label_of(source, index)
        if label is None:
            continue
        if label not in numbers:
            raise ValueError(f"data: {source.picture_name(index)} is of the class {label!r}, expected one of the {len(classes)} classes of "
                             f"training: {_listed(classes)}")
        found.append((index, numbers[label]))
    if not found:
        raise _no_classes(source)
    pictures, labels = torch.tensor(found).unbind(1)
    return pictures, labels


def find_class(name: str, classes: list[str]) -> int:
    """The number of a class by its name. Raises ValueError naming the known ones."""
    if name not in classes:
        raise ValueError(f"prompt: expected one of the classes {_listed(classes)}, got {name!r}{did_you_mean(name, classes)}")
    return classes.index(name)


def _no_classes(source: Source) -> ValueError:
    return ValueError(f'data: {source.name} has no classes; expected a folder for each class, or a metadata.jsonl with the "label" of its '
                      "pictures")


def _listed(classes: list[str], most: int = 20) -> str:
    rest = len(classes) - most
    return ", ".join(classes[:most]) + (f" and {rest} others" if rest > 0 else "")
