"""The words of a VQCT: of the training captions, of any other captions, or of a file made before."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.data.sources import DataError, Source, open_split
from training.tokenizer_settings import WordSettings
from vqkit.language import Vocabulary, build_vocabulary

_LINES, _RECORDS = (".txt", ".txt.gz"), (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class WordSelection:
    """Which captions give the words, how many, and which language model their vectors."""

    captions: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Caption files: .txt with a caption a line, or .jsonl with "captions" or "caption" in every line, plain or .gz; or data sets,
    whose train split is read."""
    out: Path
    """The vocabulary, a safetensors file for `tokenizer vqct --words`."""
    adjectives: int | None = 1024
    """The most frequent ones; None keeps all."""
    nouns: int | None = 1024
    """Likewise."""
    min_count: int = 1
    """Words that occur less often are left out; 11 in the paper."""
    encoder: str = "minilm"
    """A text model of transformers by folder or name (CLIP, BERT, ...), a file of word vectors, or "minilm"."""
    features: Literal["input", "pooled"] | None = None
    """Word embeddings, or the feature of "a photo of ...". Default: pooled for CLIP, input for all others."""
    fill: bool = True
    """Add words of WordNet where the captions have fewer than asked."""

    def __post_init__(self):
        if not self.captions:
            raise ValueError("captions: expected at least one file or data set, got none")


def write_vocabulary(wanted: WordSelection) -> Vocabulary:
    """Select the words, encode them and write the file. Raises ValueError or FileNotFoundError naming the file or setting."""
    captions = [caption for name in wanted.captions for caption in read_captions(name)]
    made = build_vocabulary(captions, max_adjectives=wanted.adjectives, max_nouns=wanted.nouns, min_count=wanted.min_count,
                            encoder=wanted.encoder, features=wanted.features, fill_from_wordnet=wanted.fill)
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(wanted.out)
    print(f"{wanted.out}: {len(made.adjectives):,} adjectives and {len(made.nouns):,} nouns of {len(captions):,} captions, "
          f"{len(made.edges):,} relations, vectors of {made.vectors.shape[1]} by {made.encoder}")
    return made


def find_vocabulary(settings: WordSettings, source: Source) -> Vocabulary:
    """The words of a file, or the most frequent ones of the training captions (class names stand in where there are none)."""
    if settings.words != "captions":
        return Vocabulary.load(settings.words)
    captions = list(_captions_of(source))
    if not captions:
        raise ValueError(f"words: {source.name} has neither captions nor class folders; give --words a vocabulary file")
    return build_vocabulary(captions, max_adjectives=settings.adjectives, max_nouns=settings.nouns)


def read_captions(name: str) -> Iterator[str]:
    """The captions of a file, or of a data set's train split. Raises FileNotFoundError, or DataError naming the line."""
    if not name.endswith(_LINES + _RECORDS):
        yield from _captions_of(open_split(name, "train"))
        return
    if not Path(name).is_file():
        raise FileNotFoundError(f"captions: there is no {name}")
    with gzip.open(name, "rt", encoding="utf-8") if name.endswith(".gz") else open(name, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield from [line.strip()] if name.endswith(_LINES) else _captions_in(line, f"{name}, line {number}")


def _captions_in(line: str, place: str) -> list[str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as broken:
        raise DataError(f"{place}: not JSON: {broken}") from broken
    found = record.get("captions", record.get("caption")) if isinstance(record, dict) else None
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
        raise DataError(f'{place}: expected an object with "captions", a list of strings, or "caption", got {line[:80].strip()}')
    return found


def _captions_of(source: Source) -> Iterator[str]:
    for index in range(len(source)):
        record = source.record(index)
        if "captions" in record:
            yield from record["captions"]
        elif "label" in record:
            yield f"a photo of a {record['label']}"
