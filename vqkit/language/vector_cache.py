"""Vectors of texts kept on disk by content, so that a language model runs once, and not at all where the cache was carried.

An entry's name is a hash of the model's identity, the kind of feature and the texts. A note beside the entries keeps the
identity of each model under the name by which it was asked for, so the entries are found where the model is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from pathlib import Path
from typing import Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

_FORMAT = "vqkit.vectors.1"


def default_cache_dir() -> Path:
    """$VQKIT_CACHE, or ~/.cache/vqkit."""
    return Path(os.environ.get("VQKIT_CACHE") or Path.home() / ".cache" / "vqkit")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, even if this process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: its files are for their owner only, whatever the umask says.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def _checksum(vectors: torch.Tensor) -> str:
    return hashlib.sha256(vectors.numpy().tobytes()).hexdigest()


class VectorCache:
    """Entries under `folder` (default: `default_cache_dir()`): vectors/HASH.safetensors and models/HASH.json."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder) if folder is not None else default_cache_dir()

    def entry_path(self, identity: str, features: str, texts: Sequence[str]) -> Path:
        """Where the vectors of these texts lie, or would."""
        return self.folder / "vectors" / f"{_digest(_FORMAT, identity, features, json.dumps(list(texts)))}.safetensors"

    def load(self, identity: str, features: str, texts: Sequence[str]) -> torch.Tensor | None:
        """The vectors (len(texts), W) float32; None where there is no entry or it is damaged."""
        path = self.entry_path(identity, features, texts)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as entry:
                vectors, metadata = entry.get_tensor("vectors"), json.loads((entry.metadata() or {})[_FORMAT])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        whole = vectors.dtype == torch.float32 and vectors.dim() == 2 and len(vectors) == len(texts)
        return vectors if whole and metadata.get("sha256") == _checksum(vectors) else None

    def store(self, identity: str, features: str, texts: Sequence[str], vectors: torch.Tensor) -> None:
        """Keep the vectors; a folder that cannot be written is a warning, not an error."""
        # One key: safetensors writes several in no fixed order.
        metadata = {"model": identity, "features": features, "sha256": _checksum(vectors)}
        content = save({"vectors": vectors.contiguous()}, {_FORMAT: json.dumps(metadata, sort_keys=True)})
        self._write(self.entry_path(identity, features, texts), content)

    def note_model(self, name: str, identity: str, family: str) -> None:
        """Remember which model `name` was; nothing is written where that is known, so a carried cache may be read-only."""
        if self.noted_model(name) == (identity, family):
            return
        note = {"name": name, "identity": identity, "family": family}
        self._write(self._note_path(name), json.dumps(note, sort_keys=True).encode("utf-8"))

    def noted_model(self, name: str) -> tuple[str, str] | None:
        """(identity, family) of the model last used under this name, or None."""
        try:
            note = json.loads(self._note_path(name).read_text(encoding="utf-8"))
            return str(note["identity"]), str(note["family"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note_path(self, name: str) -> Path:
        return self.folder / "models" / f"{_digest(name)}.json"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as problem:
            warnings.warn(f"not cached: {path.parent} cannot be written ({problem})", stacklevel=4)
