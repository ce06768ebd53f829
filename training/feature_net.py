"""A feature network trained on the pictures of a data set, by which sets of pictures are compared where Inception's weights are not here:
FD(net), KD(net), never FID or KID.

It learns in a minute what a data set knows of its pictures: their class folder and the most frequent adjectives and nouns of their
captions or, where it knows nothing, by how many quarters a picture was turned. All of this is ours; the loss over several words is that
of Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, arXiv 1805.00932, section 2.3.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.data.batches import PictureDataset, TrainingOrder, default_workers, load, to_float
from training.data.sources import Source, open_split
from training.distributed import Ranks
from training.log import progress_bar
from vqkit.language import tag_words
from vqkit.metrics import Features, InceptionFeatures, PictureFeatures

_SIDE, _WIDTHS = 64, (16, 32, 64)
_WORDS, _FEWEST = 64, 2
_BATCH, _LR = 64, 3e-3
# Part of a kept file's name: to be raised with every change of the network or of its training.
_VERSION = 1


class FeatureNet(PictureFeatures):
    """Six convolutions on pictures of at most 64 x 64, larger ones scaled down; pictures of a smaller side stay as they are.

    The features, 128 of them, are the means over positions of the second and the third stage's activations: what textures there are, and what
    things. The logits are of the classes, words or turns named in `classes`.

    Args:
        classes: what the logits are of.
        digest: of the weights, for `identity`; "" while it is trained.
    """

    name, dim = "net", 2 * _WIDTHS[-1]

    def __init__(self, classes: list[str], digest: str = ""):
        super().__init__()
        self.classes, self.digest = classes, digest
        self.stages, width = nn.ModuleList(), 3
        for out in _WIDTHS:
            self.stages.append(nn.Sequential(*_convolution(width, out, stride=2), *_convolution(out, out, stride=1)))
            width = out
        self.texture = nn.Conv2d(_WIDTHS[1], _WIDTHS[2], 1)
        self.head = nn.Linear(self.dim, len(classes))

    @property
    def identity(self) -> str:
        return f"{self.name}-{self.digest}"

    def describe(self, pictures: Tensor) -> Features:
        if max(pictures.shape[2:]) > _SIDE:
            pictures = F.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
        first = self.stages[1](self.stages[0](pictures))
        pooled = torch.cat([F.silu(self.texture(first)).mean((2, 3)), self.stages[2](first).mean((2, 3))], 1)
        return Features(pooled, self.head(pooled))


def _convolution(width: int, out: int, stride: int) -> tuple[nn.Module, ...]:
    # Normalised over the pictures: over each by itself, its contrast would be lost.
    return nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU()


@dataclass(frozen=True)
class _Targets:
    """What a split teaches: the classes, and of each of its first pictures their shares, (P, C); None for turns."""

    classes: list[str]
    shares: Tensor | None


def feature_net(data: str | os.PathLike, resolution: int, seed: int, folder: str | os.PathLike, *, fit: str = "crop", pictures: int = 2048,
                steps: int = 300) -> FeatureNet:
    """The feature network of a data set: trained on its train split and kept in `folder`, or read from there where it was trained before.

    Args:
        data: a folder or zip with splits, or "scenes".
        resolution, fit: of the pictures that it will compare, as in `PictureDataset`.
        seed: of the weights and of the order of training; for "scenes" of the scenes too. Distances are comparable over one network only,
            so a study takes one seed for all its runs.
        folder: where networks are kept, one file for each data set (by its path and what it says of its pictures), resolution, fit, seed,
            pictures and steps.
        pictures: only the first ones of the split are learned from.
        steps: of 64 pictures each.

    Trained on the CPU, with a progress bar; the same bits on one machine with one number of threads. Returned frozen, in eval mode.
    Raises ValueError where the split or its pictures are missing, or a kept file is damaged.
    """
    for name, value in (("resolution", resolution), ("pictures", pictures), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    source = open_split(data, "train", seed=seed)
    records = [source.record(index) for index in range(min(pictures, len(source)))]
    place = str(data) if str(data) == "scenes" else str(Path(data).resolve())
    known = json.dumps([_VERSION, place, resolution, fit, seed, pictures, steps, records], sort_keys=True)
    kept = Path(folder) / f"feature_net-{hashlib.blake2b(known.encode(), digest_size=8).hexdigest()}.safetensors"
    if not kept.is_file():
        _write(_train(_targets(records), source, resolution, fit, seed, len(records), steps), kept)
    return _read(kept)


def feature_networks(ranks: Ranks, data: str | os.PathLike, resolution: int, *, fit: str = "crop", inception_weights: Path | None = None,
                     folder: Path | None = None) -> tuple[PictureFeatures, ...]:
    """The networks that an evaluation asks for, on the ranks' device: Inception where its weights are given, the data's `feature_net` where
    the folder is that keeps it.

    The network is that of seed 0 whatever the run's, or runs could not be compared. The first rank trains it, the others wait.
    Raises what `InceptionFeatures` and `feature_net` raise.
    """
    found: list[PictureFeatures] = [] if inception_weights is None else [InceptionFeatures(inception_weights)]
    if folder is not None:
        own = feature_net(data, resolution, 0, folder, fit=fit) if ranks.first else None
        ranks.barrier()
        found.append(own or feature_net(data, resolution, 0, folder, fit=fit))
    return tuple(network.to(ranks.device) for network in found)


def _targets(records: list[dict]) -> _Targets:
    """Class folders together with adjectives and nouns of captions, else turns."""
    found = [set(re.findall(r"[^\W\d_]{2,}", " ".join(record.get("captions") or []).lower())) for record in records]
    for words, record in zip(found, records):
        # Not a word, lest the class "bird" be the same as a bird in a caption.
        words |= {f"class {record['label']}"} if "label" in record else set()
    counts = Counter(word for words in found for word in words)
    # A word of all pictures tells none from another, a word of one picture is its name.
    useful = [word for word, count in counts.items() if _FEWEST <= count < len(records)]
    ranked = sorted(useful, key=lambda word: (-counts[word], word))
    classes = list(islice((word for word in ranked if word.startswith("class ") or _is_seen(word)), _WORDS))
    if len(classes) < 2:
        return _Targets(["upright", "turned left", "upside down", "turned right"], None)
    shares = torch.tensor([[float(word in words) for word in classes] for words in found])
    return _Targets(classes, shares / shares.sum(1, keepdim=True).clamp_min(1))


def _is_seen(word: str) -> bool:
    """Whether a word by itself is an adjective or a noun; the others say little of what a picture shows."""
    return tag_words(word)[0].tag in ("adjective", "noun")


def _train(targets: _Targets, source: Source, resolution: int, fit: str, seed: int, pictures: int, steps: int) -> FeatureNet:
    dataset, device = PictureDataset(source, resolution, fit=fit, replace_broken=True), torch.device("cpu")
    order = TrainingOrder(pictures, _BATCH, seed, last=steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureNet(targets.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps + 1)
    turns = torch.Generator().manual_seed(seed)
    workers = 0 if dataset.kept_in_memory else default_workers()
    with progress_bar("feature network", steps, 0, True) as bar:
        for images, indices in load(dataset, order, workers, device):
            x = to_float(images, device)
            if targets.shares is None:
                turn = torch.randint(4, (len(x),), generator=turns)
                x = torch.stack([torch.rot90(picture, int(count), (1, 2)) for picture, count in zip(x, turn)])
                shares = F.one_hot(turn, 4).float()
            else:
                # A picture that took the place of a broken one may lie past the last that is learned from.
                shares = targets.shares[indices % pictures]
            loss = F.cross_entropy(net.describe(x).logits, shares)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return net


def _write(net: FeatureNet, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(net.state_dict(), unfinished, metadata={"classes": json.dumps(net.classes, ensure_ascii=False)})
    os.replace(unfinished, path)


def _read(path: Path) -> FeatureNet:
    try:
        with safe_open(path, "pt") as file:
            classes = json.loads(file.metadata()["classes"])
        # Made without values: to draw them would move the caller's random numbers on.
        with torch.device("meta"):
            net = FeatureNet(classes, hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        # Copies: in the file tensors lie at odd addresses, at which products of matrices round differently.
        net.load_state_dict({key: value.clone() for key, value in load_file(path).items()}, assign=True)
    # a damaged file raises almost anything
    except Exception as error:
        raise ValueError(f"folder: {path} is damaged or no feature network; remove it to train another: {type(error).__name__}: {error}") from error
    return net.eval().requires_grad_(False)
