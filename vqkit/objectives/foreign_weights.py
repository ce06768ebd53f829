"""Published weights of other people's networks, from a file that the user gives."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class MissingWeights(FileNotFoundError):
    """Weights that this library does not ship were not found; the message says which file to put where."""


def read_weights(path: Path, argument: str, content: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a state dict in a .pth.

    argument: that names the file; content: what the file should hold; both for messages. Raises MissingWeights where there is no file,
    ValueError where it is damaged or no state dict.
    """
    if not path.is_file():
        raise MissingWeights(f"{argument}: no file at {path}; expected {content}, as .safetensors or .pth")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    # reading damaged bytes raises almost anything
    except Exception as error:
        raise ValueError(f"{argument}: {path} is damaged or not {content}: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{argument}: {path} is not {content}: it holds a {type(state).__name__}")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def check_weights(state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, argument: str, content: str) -> None:
    """Raise ValueError where a wanted tensor is missing or has another shape, naming the first three."""
    wrong = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise ValueError(f"{argument}: {path} is not {content}: {len(wrong)} of {len(wanted)} tensors missing or misshapen ({', '.join(wrong[:3])})")
