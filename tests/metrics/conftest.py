"""A WordNet of a few words, so that what reads WordNet is tested where none is installed; and captions to score."""

import os
import random
from pathlib import Path

import pytest

# Noun synsets: words, and the place of the synset above (None for the root).
NOUNS = [
    (["entity"], None), (["object"], 0), (["animal", "beast"], 1), (["dog"], 2), (["cat"], 2), (["artifact"], 1), (["car", "automobile"], 5),
    (["chair"], 5), (["furniture"], 5), (["night_stand", "bedside_table"], 8),
]  # fmt: skip
VERBS = [(["stop", "halt"], None), (["run"], None)]
WORDS = """a the dog cat man woman boy girl car automobile bike bicycle street road dogs running run runs sits sitting stopped halted
    jumping jumps over on in of is are with red black small little big large brown water grass ball two three near beside through snow""".split()


def write_part(folder: Path, name: str, kind: str, synsets: list) -> None:
    """data.NAME and index.NAME in the format of wndb(5WN)."""
    frames = " 01 + 02 00" if kind == "v" else ""
    offset, offsets, lines = 0, [], []
    for words, above in synsets:
        pointers = "000" if above is None else f"001 @ {offsets[above]:08d} {kind} 0000"
        entries = " ".join(f"{word} 0" for word in words)
        line = f"{offset:08d} 03 {kind} {len(words):02x} {entries} {pointers}{frames} | gloss\n"
        offsets.append(offset)
        lines.append(line)
        offset += len(line)
    (folder / f"data.{name}").write_text("".join(lines))
    index = {word: place for place, (words, _) in enumerate(synsets) for word in words}
    (folder / f"index.{name}").write_text("".join(f"{word} {kind} 1 0 1 0 {offsets[place]:08d}\n" for word, place in sorted(index.items())))


@pytest.fixture(scope="session")
def small_wordnet_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wordnet")
    write_part(folder, "noun", "n", NOUNS)
    write_part(folder, "verb", "v", VERBS)
    write_part(folder, "adj", "a", [])
    write_part(folder, "adv", "r", [])
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"{part}.exc").write_text("ran run\nstopped stop\n" if part == "verb" else "")
    return folder


@pytest.fixture(scope="session")
def small_wordnet(small_wordnet_folder):
    pytest.importorskip("nltk")
    from vqkit.metrics.synsets import open_wordnet

    return open_wordnet(small_wordnet_folder)


@pytest.fixture(scope="session")
def full_wordnet():
    """The machine's WordNet 3.0."""
    pytest.importorskip("nltk")
    from vqkit.metrics.synsets import open_wordnet

    folder = os.environ.get("WORDNET_DICT", "/usr/share/wordnet")
    if not Path(folder, "data.noun").is_file():
        pytest.skip("no WordNet 3.0 dictionary folder here")
    return open_wordnet(folder)


@pytest.fixture
def no_wordnet(monkeypatch, tmp_path):
    """A machine without WordNet."""
    nltk = pytest.importorskip("nltk")
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader

    from vqkit.metrics import synsets

    monkeypatch.delenv("WORDNET_DICT", raising=False)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    monkeypatch.setattr(synsets, "_SYSTEM_FOLDERS", (str(tmp_path),))


@pytest.fixture(scope="session")
def captions() -> tuple[list[str], list[list[str]]]:
    """Tokenised hypotheses and references: words repeated, captions cut, changed and turned, and the odd cases."""
    draw = random.Random(0)
    hypotheses, references = [], []
    for _ in range(60):
        base = draw.choices(WORDS, k=draw.randint(3, 14))
        own = []
        for _ in range(draw.randint(1, 5)):
            words = [draw.choice(WORDS) if draw.random() < 0.25 else word for word in base if draw.random() < 0.9]
            turn = draw.randrange(len(words) + 1)
            own.append(" ".join(words[turn:] + words[:turn] if draw.random() < 0.3 else words) or "dog")
        hypotheses.append(" ".join(base))
        references.append(own)
    hypotheses += ["", "dog dog dog dog dog dog", "zebra quux", references[0][0], "café 犬 x", "a", "the dog", "a man 's dog is n't red"]
    references += [["a dog"], ["the dog", "a dog and a dog"], ["a red car"], references[0], ["café 犬", "un café"],
                   ["a very long reference of many words"], ["the dog runs", "the"], ["a man 's dog is not red", "a t-shirt of a man , $ 5"]]  # fmt: skip
    return hypotheses, references
