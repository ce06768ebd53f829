"""A model in a folder: config.json and model.safetensors, each written whole or not at all."""

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
_FINGERPRINT = "config_sha256"


def write(folder: str | os.PathLike, name: str, config: dict, module: nn.Module) -> None:
    """Write `config.json` and `model.safetensors`, replacing earlier ones.

    The weights carry the fingerprint of their configuration, so that a write that was killed between the two files is
    noticed on reading. Tensors that share memory are stored once each.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "config": config}, ensure_ascii=False, indent=1, sort_keys=True)
    # safetensors refuses shared memory and strides: store plain copies
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in module.state_dict().items()}
    metadata = {"format": "pt", _FINGERPRINT: _fingerprint(text)}
    _replace(folder / _WEIGHTS, lambda path: save_file(tensors, path, metadata=metadata))
    _replace(folder / _CONFIG, lambda path: Path(path).write_text(text, encoding="utf-8"))


def read_config(folder: str | os.PathLike) -> tuple[str, dict]:
    """The model's name and configuration. FileNotFoundError without config.json, ValueError where it holds neither."""
    path = _existing(folder, _CONFIG)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["name"], content["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: {path} is not a model's configuration: {type(error).__name__}: {error}") from error


def read_weights(folder: str | os.PathLike, module: nn.Module) -> None:
    """Give `module` the tensors of the folder, in the dtypes they were saved in.

    Raises FileNotFoundError without model.safetensors; ValueError where it is damaged or belongs to another
    configuration, or where a tensor is missing, unknown or of another shape. On an error the module is unchanged.
    """
    path = _existing(folder, _WEIGHTS)
    text = _existing(folder, _CONFIG).read_text(encoding="utf-8")
    try:
        with safe_open(path, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get(_FINGERPRINT)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"folder: {path} is not a whole safetensors file: {error}") from error
    if fingerprint is not None and fingerprint != _fingerprint(text):
        raise ValueError(f"folder: {path} was written with another configuration than {_CONFIG} beside it")
    problems = _differences(module.state_dict(), tensors)
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(f"folder: {path} does not fit the model of {_CONFIG}, {len(problems)} tensors differ: {shown}")
    module.load_state_dict(tensors, assign=True)


def _differences(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    problems = [f"{key} is missing" for key in wanted if key not in found]
    problems += [f"{key} is unknown" for key in found if key not in wanted]
    for key in wanted.keys() & found.keys():
        if wanted[key].shape != found[key].shape:
            problems.append(f"{key} has shape {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}")
    return problems


def _existing(folder: str | os.PathLike, file: str) -> Path:
    path = Path(folder) / file
    if not path.is_file():
        raise FileNotFoundError(f"folder: no {file} in {os.fspath(folder)}; expected what save_pretrained writes")
    return path


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
