"""A model in a folder: model.safetensors, which holds its configuration too, and config.json, the copy to read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# in the metadata of the weights: the text of the configuration; older files have its SHA-256 or neither
_TEXT, _FINGERPRINT = "config", "config_sha256"


def write(folder: str | os.PathLike, name: str, config: dict, module: nn.Module) -> None:
    """Write `config.json` and `model.safetensors`, replacing earlier ones.

    The weights carry their configuration, so that a write that was killed between the two files leaves a whole model, the
    new one. Tensors that share memory are stored once each.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "config": config}, ensure_ascii=False, indent=1, sort_keys=True)
    # safetensors refuses shared memory and strides: store plain copies
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in module.state_dict().items()}
    # one key: safetensors writes several in no fixed order, and the same model is to be the same bytes
    _replace(folder / _WEIGHTS, lambda path: save_file(tensors, path, metadata={_TEXT: text}))
    _replace(folder / _CONFIG, lambda path: Path(path).write_text(text, encoding="utf-8"))


def read_config(folder: str | os.PathLike) -> tuple[str, dict]:
    """The model's name and configuration, from the weights; where these are missing or older, from config.json.

    Raises FileNotFoundError where that is missing too; ValueError where the weights are damaged or it holds neither.
    """
    path = Path(folder) / _WEIGHTS
    text = _open(path)[0].get(_TEXT) if path.is_file() else None
    if text is None:
        path = _existing(folder, _CONFIG)
    try:
        content = json.loads(path.read_text(encoding="utf-8") if text is None else text)
        name, config = content["name"], content["config"]
        if not isinstance(name, str) or not isinstance(config, dict):
            raise TypeError(f"got a {type(name).__name__} as name and a {type(config).__name__} as config, expected str and dict")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: {path} is not a model's configuration: {type(error).__name__}: {error}") from error
    return name, config


def read_weights(folder: str | os.PathLike, module: nn.Module) -> None:
    """Give `module` the tensors of the folder, in the dtypes they were saved in.

    Raises FileNotFoundError without model.safetensors; ValueError where it is damaged or, as older ones may, belongs to
    another config.json, or where a tensor is missing, unknown or of another shape. On an error the module is unchanged.
    """
    path = _existing(folder, _WEIGHTS)
    metadata, tensors = _open(path, read=True)
    if _TEXT not in metadata and _FINGERPRINT in metadata:
        text = _existing(folder, _CONFIG).read_bytes()
        if metadata[_FINGERPRINT] != hashlib.sha256(text).hexdigest():
            raise ValueError(f"folder: {path} was written with another configuration than {_CONFIG} beside it")
    problems = _differences(module.state_dict(), tensors)
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(f"folder: {path} does not fit its model, {len(problems)} tensors differ: {shown}")
    # Copies: in the file tensors lie at odd addresses, at which products of matrices are slower and round differently.
    module.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, assign=True)


def _differences(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    problems = [f"{key} is missing" for key in wanted if key not in found]
    problems += [f"{key} is unknown" for key in found if key not in wanted]
    for key in wanted:
        if key in found and wanted[key].shape != found[key].shape:
            problems.append(f"{key} has shape {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}")
    return problems


def _open(path: Path, read: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and, to read, the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()} if read else {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"folder: {path} is not a whole safetensors file: {error}") from error


def _existing(folder: str | os.PathLike, file: str) -> Path:
    path = Path(folder) / file
    if not path.is_file():
        raise FileNotFoundError(f"folder: no {file} in {os.fspath(folder)}; expected what save_pretrained writes")
    return path


def _replace(path: Path, save: Callable[[str], object]) -> None:
    """Write beside the target, flush to disk, then rename over it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp lets only the owner read
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
