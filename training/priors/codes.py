"""The pictures of a split as codes of a frozen tokenizer: encoded once, kept in a file, never encoded again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from training.data.batches import EvaluationOrder, PictureDataset, default_workers, load, to_float
from training.data.sources import Source
from vqkit.models import Segment, Tokenizer


@dataclass(frozen=True)
class PictureFormat:
    """What pictures are as codes.

    resolution, fit: of the pictures as the tokenizer was trained on them.
    height, width: of the map of codes.  sizes, selections: as in `Segment`.
    """

    resolution: int
    fit: str
    height: int
    width: int
    sizes: tuple[int, ...]
    selections: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, resolution: int, fit: str) -> PictureFormat:
        """Raises ValueError for a tokenizer without codes, or whose codes are no map that is the same for all pictures."""
        with torch.no_grad():
            blank = torch.zeros(1, 3, resolution, resolution, device=next(tokenizer.parameters()).device)
            shape = tuple(tokenizer.encode(blank).shape)
        streams = sum(tokenizer.selections)
        if shape[3:] not in ((), (streams,)) or len(shape) < 3 or (len(shape) == 3) != (streams == 1):
            raise ValueError(f"tokenizer: a prior needs a map of codes (B, h, w) or (B, h, w, {streams}), {tokenizer.name} gives {shape}")
        return cls(resolution, fit, shape[1], shape[2], tuple(tokenizer.codebook_sizes), tuple(tokenizer.selections))

    def segment(self, name: str = "image", *, predicted: bool) -> Segment:
        """A map of codes as a segment, row by row."""
        return Segment(name, self.height * self.width, self.sizes, self.selections, predicted)

    def to_map(self, tokens: Tensor) -> Tensor:
        """(B, h w[, S]), a segment's tokens, to the indices (B, h, w[, S]) that the tokenizer decodes."""
        return tokens.unflatten(1, (self.height, self.width))


@dataclass(frozen=True)
class PictureCodes:
    """codes: int32 (P, h w[, S]) of the P pictures of a split in its order; readable: bool (P,), False where a picture was not."""

    codes: Tensor
    readable: Tensor


def encode_pictures(tokenizer: Tokenizer, source: Source, pictures: PictureFormat, kept: Path | None = None,
                    batch_size: int = 64) -> PictureCodes:
    """The pictures of a split as codes, by the tokenizer on its device in eval mode.

    kept: a file that holds them from now on; where it exists it is read instead.
    """
    if kept is not None and kept.is_file():
        return read_codes(kept)
    dataset = PictureDataset(source, pictures.resolution, fit=pictures.fit, memory_budget=0)
    device, total = next(tokenizer.parameters()).device, len(source)
    codes, readable = None, torch.zeros(total, dtype=torch.bool)
    batches = load(dataset, EvaluationOrder(total, batch_size), default_workers(), device)
    for images, indices in tqdm(batches, desc="pictures to codes", unit="batch", leave=False, mininterval=1):
        with torch.no_grad():
            tokens = tokenizer.encode(to_float(images, device)).flatten(1, 2).to("cpu", torch.int32)
        codes = torch.full((total, *tokens.shape[1:]), -1, dtype=torch.int32) if codes is None else codes
        codes[indices], readable[indices] = tokens, True
    if not readable.any():
        raise ValueError(f"data: none of the {total} pictures in {source.name} can be read")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
        save_file({"codes": codes, "readable": readable}, unfinished)
        os.replace(unfinished, kept)
    return PictureCodes(codes, readable)


def read_codes(kept: Path) -> PictureCodes:
    """What `encode_pictures` kept in a file."""
    found = load_file(kept)
    return PictureCodes(found["codes"], found["readable"])
