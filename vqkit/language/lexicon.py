"""Word lists: which parts of speech a word can have, and how often WordNet's texts use each.

Two lists answer alike: the one shipped with the package (`data/words.txt.gz`, made from WordNet 3.0 by
`vqkit.language.wordnet`) and NLTK's WordNet corpus, used where its data is installed. Nouns that name single things
only ("london") are no words of either; those that look like plurals ("wales") are listed as names.

Source: WordNet 3.0, Princeton University (data/LICENSE.wordnet); Morphy's rules of detachment, morphy(7WN).
"""

from __future__ import annotations

import gzip
import importlib.util
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Collection, Mapping

PARTS = "nvar"  # noun, verb, adjective (satellites included), adverb

# Suffix -> ending of the base form, tried in this order.
DETACHMENT_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "n": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}

_SENSE_PARTS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}

# Lexicographer files of nouns that name things one can see; 3 ("Tops") holds the roots of the others.
_CONCRETE_FILES = frozenset({5, 6, 8, 13, 15, 17, 18, 20, 25, 27})
_CONCRETE_ROOTS = frozenset({"animal", "artifact", "body", "food", "location", "object", "person", "plant", "shape", "substance"})


@dataclass(frozen=True)
class Entry:
    """What WordNet knows of one word: `counts` maps a part of speech in "nvar" to the tagged uses of all its
    senses (0: possible but never tagged); `noun_file` is the lexicographer file of its first noun sense, or -1."""

    counts: Mapping[str, int]
    noun_file: int = -1


class Lexicon:
    """A word list: entries by word, irregular forms by part of speech, and names that are no forms of other nouns.

    `source` says where the words come from: "shipped", "nltk", or a dictionary folder.
    """

    def __init__(
        self,
        source: str,
        entries: Mapping[str, Entry],
        exceptions: Mapping[str, Mapping[str, tuple[str, ...]]],
        names: Collection[str] = frozenset(),
    ):
        self.source = source
        self._entries = entries
        self._exceptions = exceptions
        self._names = names

    def entry(self, word: str) -> Entry | None:
        """The entry of `word` as it stands (lower case), or None."""
        return self._entries.get(word)

    def count(self, word: str, part: str) -> int | None:
        """Tagged uses of `word` as `part` ("n", "v", "a" or "r"); None where it cannot be that part of speech."""
        entry = self.entry(word)
        return None if entry is None else entry.counts.get(part)

    def bases(self, form: str, part: str) -> list[str]:
        """Base forms other than `form` itself from which Morphy derives it, as it finds them (maybe none)."""
        found = self._exceptions[part].get(form)
        if found is None:
            found = [form[: len(form) - len(old)] + new for old, new in DETACHMENT_RULES[part] if form.endswith(old)]
        return [base for base in dict.fromkeys(found) if base != form and self.count(base, part) is not None]

    def noun_lemma(self, word: str) -> str:
        """The WordNet noun of which `word` is a form; `word` itself where WordNet knows none.

        A form that is a noun of its own (pants, stairs, bus) stays, unless WordNet's texts use a base form more than
        three times as often (men -> man, hands -> hand, glasses -> glass): NLTK's lemmatiser, which takes the
        shortest, turns gas into ga and pants into pant. So does a name (wales, adams), unless its form is a common plural
        too (fields, parks).
        """
        bases = self.bases(word, "n") if not word.endswith("ss") and word not in self._names else []
        if not bases:
            return word
        base = max(bases, key=lambda candidate: self.count(candidate, "n"))
        own = self.count(word, "n")
        return base if own is None or self.count(base, "n") > 3 * own else word

    def is_concrete(self, noun: str) -> bool:
        """Whether the first sense of `noun` is a thing, living being, substance, shape or place."""
        entry = self.entry(noun)
        if entry is None:
            return False
        return entry.noun_file in _CONCRETE_FILES or (entry.noun_file == 3 and noun in _CONCRETE_ROOTS)


def read_entries(lines) -> dict[str, Entry]:
    """Parse lines `word n12.6 a3 ...`: part of speech, tagged uses and, for nouns, the lexicographer file."""
    entries = {}
    for line in lines:
        word, *fields = line.split()
        counts, noun_file = {}, -1
        for field in fields:
            count, _, file = field[1:].partition(".")
            counts[field[0]] = int(count)
            if file:
                noun_file = int(file)
        entries[word] = Entry(counts, noun_file)
    return entries


def read_exceptions(lines) -> dict[str, dict[str, tuple[str, ...]]]:
    """Parse lines `n children child`: part of speech, irregular form, its base forms."""
    exceptions: dict[str, dict[str, tuple[str, ...]]] = {part: {} for part in PARTS}
    for line in lines:
        part, form, *bases = line.split()
        exceptions[part][form] = tuple(bases)
    return exceptions


def tagged_uses(lines) -> Counter:
    """(word, part of speech) -> tagged uses of all its senses, from the lines of WordNet's cntlist.rev."""
    uses: Counter = Counter()
    for line in lines:
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        uses[word, _SENSE_PARTS[sense[0]]] += int(count)
    return uses


def shipped_lines(name: str) -> list[str]:
    """The lines of one data file of this package, comments left out."""
    packed = resources.files("vqkit.language").joinpath("data", name).read_bytes()
    return [line for line in gzip.decompress(packed).decode("utf-8").splitlines() if not line.startswith("#")]


@lru_cache(maxsize=1)
def shipped_lexicon() -> Lexicon:
    """The word list that comes with the package."""
    entries, exceptions = read_entries(shipped_lines("words.txt.gz")), read_exceptions(shipped_lines("exceptions.txt.gz"))
    return Lexicon("shipped", entries, exceptions, frozenset(shipped_lines("names.txt.gz")))


class _NltkEntries(dict):
    """Entries read from NLTK's WordNet when first asked for."""

    def __init__(self, corpus):
        super().__init__()
        self._corpus = corpus
        # Not Lemma.count(): some of the sense keys counted there are of older adjective clusters, and would be lost.
        with corpus.open("cntlist.rev") as lines:
            self._uses = tagged_uses(lines)

    def get(self, word, default=None):
        if word not in self:
            self[word] = self._look_up(word)
        return self[word] or default

    def _look_up(self, word: str) -> Entry | None:
        if "_" in word:
            return None
        counts, noun_file = {}, -1
        for part in PARTS:
            lemmas = self._corpus.lemmas(word, part)
            if part == "n" and all(lemma.synset().instance_hypernyms() for lemma in lemmas):
                continue
            if lemmas:
                counts[part] = self._uses[word, part]
            if lemmas and part == "n":
                noun_file = self._corpus._lexnames.index(lemmas[0].synset().lexname())
        return Entry(counts, noun_file) if counts else None


def nltk_lexicon() -> Lexicon | None:
    """The word list of NLTK's WordNet corpus; None where NLTK or the corpus is not installed."""
    if importlib.util.find_spec("nltk") is None:
        return None
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    exceptions = {part: {form: tuple(bases) for form, bases in wordnet._exception_map[part].items()} for part in PARTS}
    # Which names are common plurals too is told by WordNet's texts, read once when the list was made.
    return Lexicon("nltk", _NltkEntries(wordnet), exceptions, frozenset(shipped_lines("names.txt.gz")))


@lru_cache(maxsize=1)
def default_lexicon() -> Lexicon:
    """NLTK's WordNet where it is installed, else the shipped list; `.source` says which. Read once a process."""
    return nltk_lexicon() or shipped_lexicon()
