"""Networks whose features sets of pictures are compared by, and the names under which such numbers may be reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

# metric: (beginning of its key, beginning of its label)
METRICS = {"frechet_distance": ("fd", "FD"), "kernel_distance": ("kd", "KD"), "class_score": ("class_score", "class score"),
           "precision": ("precision", "precision"), "recall": ("recall", "recall"), "density": ("density", "density"),
           "coverage": ("coverage", "coverage")}


class Features(NamedTuple):
    """pooled: (B, D) float32, compared by distances.  logits: (B, C) float32, unnormalised class scores, or None."""

    pooled: Tensor
    logits: Tensor | None


class PictureFeatures(nn.Module, ABC):
    """A frozen network that describes pictures; it decides what a number computed from it is called.

    A distance over features is comparable only with others over the same network, and "FID", "KID" and "IS" mean one network only. Over any
    other one they are "FD(name)", "KD(name)" and "class score(name)", in metrics.json `fd_name`, `kd_name` and `class_score_name`.

    A subclass sets `name`, one word, and `dim`, D, and defines `describe`.
    Call: pictures (B, 3, H, W), uint8, or floating point in [-1, 1] -> `Features`, without a gradient. Pictures that are compared are to be
    of one resolution and 8-bit (`float` ones rounded), as picture files hold them.
    Raises ValueError or TypeError for pictures of another shape or dtype.
    """

    name: str
    dim: int
    # metrics that have a name of their own over this network alone: metric -> (key, label)
    published: ClassVar[dict[str, tuple[str, str]]] = {}

    @abstractmethod
    def describe(self, pictures: Tensor) -> Features:
        """Features of pictures (B, 3, H, W) float32 in [-1, 1]."""

    @property
    def identity(self) -> str:
        """The network and its weights in a word or two: numbers are comparable where it is the same."""
        return self.name

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Features:
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures: expected (B, 3, H, W), got {tuple(pictures.shape)}")
        if pictures.dtype == torch.uint8:
            pictures = pictures.float() / 127.5 - 1
        elif not pictures.is_floating_point():
            raise TypeError(f"pictures: expected uint8 or floating point in [-1, 1], got {pictures.dtype}")
        return self.describe(pictures.float())

    def key(self, metric: str) -> str:
        """The key in metrics.json of one of `METRICS` over this network. Raises ValueError for another metric."""
        return self.published[metric][0] if metric in self.published else f"{_known(metric)[0]}_{self.name}"

    def label(self, metric: str) -> str:
        """The same to read, such as "FD(net)"."""
        return self.published[metric][1] if metric in self.published else f"{_known(metric)[1]}({self.name})"


def _known(metric: str) -> tuple[str, str]:
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    return METRICS[metric]
