"""Which words METEOR takes for the same: its tokens, stems and synonyms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

EXACT, STEM, SYNONYM = range(3)

# METEOR 1.5's English function words (those with more than one use in a thousand of a large corpus), as far as captions' tokens can be them.
FUNCTION_WORDS = frozenset(
    """the , . to of and a in that for is on 's it with was as said at he by be from have has are his but an this not i will they -rrb- -lrb-
    who their had we which were been more or s its would about new one after you : also up when there than $ all out her people she year two
    - can if last first over other into some what so -- no time years could ? 't '""".split()
)

# A letter is anything of \w but digits and the underscore.
_LETTER = r"[^\W\d_]"
_RULES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"([^\w\s.',-]|_)", r" \1 "),
        (r"--", "-"),
        (r"([^\W_]|\.)-([^\W_])", r"\1 \2"),
        (r"((?!{L}).)'((?!{L}).)".replace("{L}", _LETTER), r"\1 ' \2"),
        (r"((?!{L}|\d).)'({L})".replace("{L}", _LETTER), r"\1 ' \2"),
        (r"({L})'((?!{L}).)".replace("{L}", _LETTER), r"\1 ' \2"),
        (r"({L})'({L})".replace("{L}", _LETTER), r"\1 '\2"),
        (r"(\d)'(s)", r"\1 '\2"),
    )
)
_KEEP_PERIOD = frozenset({"v", "vs", "rev", "pp"})

# Suffix and ending of the base form, of nouns, verbs and adjectives, tried in this order whatever the word is.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip


def meteor_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """METEOR's own tokens of a caption's tokens: hyphens split, symbols and apostrophes apart, abbreviations without periods."""
    text = f" {' '.join(tokens).lower()} "
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    words = text.split()
    found: list[str] = []
    for place, word in enumerate(words):
        stem = word[:-1]
        if len(word) == 1 or not word.endswith("."):
            found.append(word)
        elif "." in stem and re.search(_LETTER, stem):
            found.append(word.replace(".", ""))
        elif stem in _KEEP_PERIOD or (place + 1 < len(words) and words[place + 1][0].islower()):
            found.append(word)
        else:
            found.extend((stem, "."))
    return tuple(found)


class WordMatcher:
    """Which pairs of words match, and how.

    wordnet: NLTK's WordNet reader.
    """

    def __init__(self, wordnet):
        from nltk.stem.snowball import EnglishStemmer

        self._wordnet = wordnet
        self._stem = lru_cache(maxsize=None)(EnglishStemmer().stem)
        self._bases: dict[str, list[str]] = {}
        for part in "nvar":
            for form, bases in wordnet._exception_map[part].items():
                self._bases.setdefault(form, []).extend(bases)
        self._synsets = lru_cache(maxsize=None)(self._look_up)
        self.synonyms = lru_cache(maxsize=None)(self._synonyms)

    def stages(self, first: str, second: str) -> tuple[int, ...]:
        """The stages at which two words match: EXACT alone, or STEM and SYNONYM as they hold."""
        if first == second:
            return (EXACT,)
        found = (STEM,) if self._stem(first) == self._stem(second) else ()
        return found if self.synonyms(first).isdisjoint(self.synonyms(second)) else (*found, SYNONYM)

    def _look_up(self, word: str) -> frozenset:
        # The index alone: NLTK's public look-ups read every synset's text.
        known = self._wordnet._lemma_pos_offset_map.get(word, {})
        return frozenset((part, offset) for part in "nvar" for offset in known.get(part, ()))

    def _synonyms(self, word: str) -> frozenset:
        """The synsets of a word as it stands and of its base form."""
        if word in self._bases:
            return self._synsets(word).union(*map(self._synsets, self._bases[word]))
        return self._synsets(word) | self._synsets(self._base(word))

    def _base(self, word: str) -> str:
        """The first word of WordNet that one of the endings leads to; "" for none."""
        word, full = (word[:-3], "ful") if word.endswith("ful") else (word, "")
        if not full and (word.endswith("ss") or len(word) <= 2):
            return ""
        bases = (word[: len(word) - len(old)] + new for old, new in _ENDINGS if word.endswith(old))
        return next((base + full for base in bases if self._synsets(base)), "")
