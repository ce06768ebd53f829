"""What objectives have in common that join quantised maps to captions: their file, and means over all ranks."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

_METADATA = "guidance"


class Tokens(Protocol):
    """Captions as `vqkit.language.CaptionTokens` has them: ids, visible, content, words (B, T) and present (B,)."""

    ids: Tensor
    visible: Tensor
    content: Tensor
    words: Tensor
    present: Tensor


class TextModel(Protocol):
    """A frozen text model, as `vqkit.language.TextEncoder`."""

    def features(self, tokens: Tokens, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (B, T, W) of the tokens and one vector (B, W) a text; `hidden` tokens are seen by nobody."""
        ...


class TextObjective(nn.Module):
    """An objective over a map (B, D, h, w) and captions, trained along with a tokenizer and saved beside it.

    A subclass sets `kind` and `Config`, a frozen dataclass of JSON values. Its call takes the map and what it needs of the captions, and
    returns (loss, terms). Attributes: config; code_dim, D; grid, side of the map; context, most tokens of a caption; text_width, W.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, code_dim: int, grid: int, token_embeddings: Tensor, config: Any, context: int):
        super().__init__()
        if token_embeddings.dim() != 2:
            raise ValueError(f"token_embeddings: expected (V, W), got shape {tuple(token_embeddings.shape)}")
        self.config = self.Config() if config is None else config
        self.code_dim, self.grid, self.context, self.text_width = code_dim, grid, context, token_embeddings.shape[1]

    def save(self, path: str | os.PathLike, text_encoder: dict[str, str]) -> None:
        """Write weights, shape and what is to be known of the text model into one safetensors file, in one step."""
        content = {"kind": self.kind, "config": dataclasses.asdict(self.config), "code_dim": self.code_dim, "grid": self.grid,
                   "context": self.context, "text_encoder": text_encoder}
        tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in self.state_dict().items()}
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(save(tensors, metadata={_METADATA: json.dumps(content, sort_keys=True)}))
        os.replace(unfinished, path)

    @staticmethod
    def described(path: str | os.PathLike) -> dict:
        """What `save` noted: "kind", "config", "code_dim", "grid", "context", "text_encoder".

        Raises ValueError for a file that it did not write.
        """
        try:
            with safe_open(path, framework="pt") as file:
                # Those without a kind are of the time when there was one.
                return {"kind": "lgvq", **json.loads((file.metadata() or {})[_METADATA])}
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"path: {os.fspath(path)} is no saved guidance: {type(error).__name__}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike, token_embeddings: Tensor) -> Self:
        """What `save` wrote, in eval mode, on the CPU; `token_embeddings` are those of the text model that it was trained with.

        Raises FileNotFoundError without the file; ValueError where it is another file, another objective's, or the text model another.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"path: there is no {os.fspath(path)}")
        noted = cls.described(path)
        if noted["kind"] != cls.kind:
            raise ValueError(f"path: {os.fspath(path)} holds guidance of the kind {noted['kind']!r}, expected {cls.kind!r}")
        with torch.random.fork_rng(devices=[]):
            objective = cls(noted["code_dim"], noted["grid"], token_embeddings, cls.Config(**noted["config"]), noted["context"])
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        try:
            objective.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"token_embeddings: {os.fspath(path)} was trained with another text model: {error}") from error
        return objective.eval()

    def _check_map(self, quantized: Tensor) -> None:
        if quantized.dim() != 4 or quantized.shape[1] != self.code_dim:
            raise ValueError(f"quantized: expected (B, {self.code_dim}, h, w), got {tuple(quantized.shape)}")


def full_precision(x: Tensor) -> Tensor:
    """float64 stays, all else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(counts: Tensor) -> Tensor:
    """What the sums of one rank are divided by, so that their average over the ranks is the mean over everything; never 0."""
    total = counts.double()
    if world() > 1:
        dist.all_reduce(total)
    return (total / world()).masked_fill(total == 0, 1.0).float()
