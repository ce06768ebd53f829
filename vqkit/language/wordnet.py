"""Derive the shipped word lists from a WordNet 3.0 dictionary folder.

    python -m vqkit.language.wordnet DICT_DIR [--out FOLDER]

writes `words.txt.gz`, `exceptions.txt.gz`, `names.txt.gz` and `phrases.txt.gz`, the same text each time, and `LICENSE.wordnet`.

Source: WordNet 3.0, Princeton University; file formats in wndb(5WN), senseidx(5WN), cntlist(5WN).
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections import Counter, defaultdict
from pathlib import Path

from vqkit.language.graph import count_words
from vqkit.language.lexicon import Lexicon, read_entries, read_exceptions, tagged_uses

_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
# Names whose form is a common plural too, though glosses do not show it.
_COMMON_PLURALS = frozenset("callas canticles cascades groves jaspers logos loos medlars parsons raffles romans scopes sills".split())
_NEEDED = tuple(f"{kind}.{name}" for kind in ("index", "data") for name in _FILES.values()) + (
    "noun.exc", "verb.exc", "adj.exc", "cntlist.rev")  # fmt: skip


def check_folder(folder: str | Path) -> Path:
    """The folder as a Path. Raises ValueError naming the WordNet files that it lacks."""
    folder = Path(folder)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"DICT_DIR: {folder} is not a WordNet 3.0 dictionary folder; it lacks {', '.join(missing)}")
    return folder


def license_text(folder: Path) -> str:
    """WordNet's licence as it stands at the head of its data files."""
    lines = []
    for line in (folder / "data.noun").open(encoding="utf-8"):
        if not line.startswith("  "):
            break
        lines.append(re.sub(r"^\s+\d+ ?", "", line.rstrip("\n")).rstrip())
    return "\n".join(lines) + "\n"


def word_lines(folder: Path) -> list[str]:
    """One line a single-word lemma, `light n54.19 v23 a57 r0`; words that are names of single things only are left out."""
    files, instances = _noun_synsets(folder)
    with (folder / "cntlist.rev").open(encoding="utf-8") as lines:
        uses, fields = tagged_uses(lines), defaultdict(list)
    for part, name in _FILES.items():
        for line in (folder / f"index.{name}").open(encoding="utf-8"):
            parts = line.split()
            word = parts[0]
            if line.startswith(" ") or not _WORD.fullmatch(word):
                continue
            offsets = parts[-int(parts[2]) :]
            if part == "n" and instances.issuperset(offsets):
                continue
            file = f".{files[offsets[0]]}" if part == "n" else ""
            fields[word].append(f"{part}{uses[word, part]}{file}")
    return [" ".join([word, *fields[word]]) for word in sorted(fields)]


def _noun_synsets(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Of each noun synset, by its offset, the lexicographer file; and which synsets are single things."""
    files, instances = {}, set()
    for line in (folder / "data.noun").open(encoding="utf-8"):
        if not line.startswith(" "):
            offset, file = line.split(" ", 2)[:2]
            files[offset] = int(file)
            if " @i " in line:
                instances.add(offset)
    return files, instances


def name_lines(folder: Path, lexicon: Lexicon) -> list[str]:
    """Names of single things only that look like forms of listed nouns, "wales", and are not common plurals as well, "parks".

    A form that glosses use more than once in lower case is common; which others are is ours.
    """
    _, instances = _noun_synsets(folder)
    names = set()
    for line in (folder / "index.noun").open(encoding="utf-8"):
        parts = line.split()
        listed = not line.startswith(" ") and _WORD.fullmatch(parts[0])
        if listed and instances.issuperset(parts[-int(parts[2]) :]) and lexicon.bases(parts[0], "n"):
            names.add(parts[0])
    # "Brooks" at the head of a sentence is not "brooks".
    uses = Counter(word for sentence in gloss_sentences(folder) for word in re.findall(r"\w+", sentence) if word in names)
    return sorted(word for word in names - _COMMON_PLURALS if uses[word] <= 1)


def exception_lines(folder: Path, words: set[str]) -> list[str]:
    """One line an irregular form, `n children child`, where its base forms are listed words."""
    lines = []
    for part in "nva":
        bases: dict[str, list[str]] = {}
        for line in (folder / f"{_FILES[part]}.exc").open(encoding="utf-8"):
            form, *found = line.split()
            if _WORD.fullmatch(form) and words.issuperset(found):
                known = bases.setdefault(form, [])
                known.extend(base for base in found if base not in known)
        lines.extend(" ".join([part, form, *bases[form]]) for form in sorted(bases))
    return lines


def word_lists(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """The lines of words, of exceptions and of names."""
    words = word_lines(folder)
    exceptions = exception_lines(folder, {line.split(" ", 1)[0] for line in words})
    return words, exceptions, name_lines(folder, Lexicon(str(folder), read_entries(words), read_exceptions(exceptions)))


def lexicon_from_folder(folder: str | Path) -> Lexicon:
    """The word list of a WordNet dictionary folder, equal to the shipped one for WordNet 3.0."""
    words, exceptions, names = word_lists(check_folder(folder))
    return Lexicon(str(folder), read_entries(words), read_exceptions(exceptions), frozenset(names))


def gloss_sentences(folder: Path):
    """Definitions and example sentences of all synsets, names (capitalised words inside a sentence) blanked out."""
    for name in _FILES.values():
        for line in (folder / f"data.{name}").open(encoding="utf-8"):
            if line.startswith(" "):
                continue
            gloss = line.partition(" | ")[2].strip()
            for sentence in re.split(r'[;"]', gloss):
                yield re.sub(r"(?<=\S )\S*[A-Z]\S*", "0", sentence.strip().replace("`", "'"))


def phrase_lines(folder: Path, lexicon: Lexicon) -> list[str]:
    """Lines `adjective noun count` of listed words that stand together in glosses more than once, or name a concrete thing."""
    counts = count_words(gloss_sentences(folder), lexicon=lexicon)
    return [
        f"{adjective} {noun} {count}"
        for (adjective, noun), count in sorted(counts.pairs.items())
        if lexicon.count(adjective, "a") is not None
        and lexicon.count(noun, "n") is not None
        and (count > 1 or lexicon.is_concrete(noun))
    ]


def write_lines(path: Path, lines: list[str], title: str) -> None:
    """Write gzip text headed by its title and licence, with nothing in it that depends on the day or the machine."""
    head = [f"# {title}", "# Derived from WordNet 3.0, Copyright 2006 by Princeton University; see LICENSE.wordnet"]
    text = "\n".join(head + lines) + "\n"
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def write_lists(source: str | Path, out: str | Path) -> None:
    """Write all shipped files from the WordNet dictionary folder `source` into the folder `out`."""
    source, out = check_folder(source), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    words, exceptions, names = word_lists(source)
    lexicon = Lexicon(str(source), read_entries(words), read_exceptions(exceptions), frozenset(names))
    (out / "LICENSE.wordnet").write_text(license_text(source), encoding="utf-8")
    write_lines(out / "words.txt.gz", words, "word, then part of speech, tagged uses and (nouns) lexicographer file")
    write_lines(out / "exceptions.txt.gz", exceptions, "part of speech, irregular form, base forms")
    write_lines(out / "names.txt.gz", names, "name of single things that looks like a form of a listed noun")
    write_lines(out / "phrases.txt.gz", phrase_lines(source, lexicon), "adjective, noun after it, uses in glosses")


def main(arguments: list[str] | None = None) -> None:
    """Command line: regenerate the shipped files."""
    parser = argparse.ArgumentParser(prog="python -m vqkit.language.wordnet", description="Derive the shipped word lists from WordNet 3.0.")
    parser.add_argument("dict_dir", metavar="DICT_DIR", help="folder with index.noun, data.noun, cntlist.rev, ...")
    parser.add_argument("--out", default=str(Path(__file__).with_name("data")), help="where to write (default: into the package)")
    options = parser.parse_args(arguments)
    try:
        write_lists(options.dict_dir, options.out)
    except ValueError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
