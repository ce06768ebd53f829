"""Parts of speech of caption words: which are adjectives, which are nouns, and the nouns' lemmas.

A word's possible parts of speech, and how likely each is, come from WordNet's tagged uses; the sentence decides by the
best path through a table of which part of speech follows which (Viterbi): "an orange hat" has an adjective, "peels an
orange" a noun. Words that only hold a sentence together ("a", "in", "two": WordNet lists them as nouns) are given a
closed class first and are never nouns or adjectives.

Source: nouns are lemmatised as WordNet nouns, adjectives are kept as they stand and comparatives are left out, as in
arXiv 2403.10071; the tagger and its table are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log

from vqkit.language.lexicon import Lexicon, default_lexicon

_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W\d_]+?(?=n't\b)|[^\W\d_]+(?:-[^\W\d_]+)*|\d[\w.,/-]*|[^\w\s]")
_WORD_SHAPE = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*|[^\W\d_]-[^\W\d_]+")

# Runs of tokens that work as one preposition; their nouns name nothing in the picture.
_PREPOSITION_RUNS: dict[str, list[list[str]]] = {}
for _run in """in front of, on top of, next to, close to, out of, because of, instead of, in between, in back of, away from, on the side of,
        to the side of, on the back of, in the middle of, in the background, in the foreground, upside down""".split(", "):
    _PREPOSITION_RUNS.setdefault(_run.split()[0], []).append(_run.split())

_CLOSED_CLASSES = {
    "determiner": """a an the this these those its their my our your his every each any some no another other all both either neither
        half several many much few more most less such same own enough various zero one two three four five six seven eight nine ten eleven
        twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
        thousand million dozen dozens first second third fourth fifth last what which whose""",
    "pronoun": """i you he she it we they others him me us them himself herself itself themselves myself yourself oneself ourselves who whom someone
        somebody something anyone anything everyone everything nobody nothing none there here mine yours hers theirs""",
    "preposition": """in on at of with by for from into onto over under above below behind beside besides between among amongst against along
        alongside across around through throughout during before after near toward towards up down off out about upon within without inside outside past
        beneath underneath beyond via per as like than while whilst when where that if because although though until since whether unlike atop amid amidst
        aboard unto why how whereas despite except""",
    "conjunction": "and or but nor & plus",
    "auxiliary": """is are was were be been being am has have had having do does did will would shall should could may might must n't 're 've
        'll 'd 'm cannot""",
    "adverb": """not very too also just only so still then now again ever never always quite rather almost already away together apart
        maybe perhaps yet else instead e.g i.e etc""",
    "particle": "to",
    "possessive": "'s '",
    "stop": ". , ; : ! ?",
}
_CLOSED: dict[str, tuple[str, ...]] = {word: (tag,) for tag, words in _CLOSED_CLASSES.items() for word in words.split()}
_CLOSED.update({word: ("determiner", "pronoun") for word in ("her", "one", "each", "both", "all", "another")})
_CLOSED.update({"that": ("determiner", "preposition"), "'s": ("possessive", "auxiliary")})
# Words with a closed class that captions use as nouns too, with the closed class's share of their uses.
_HALF_CLOSED = {"can": ("auxiliary", 0.3), "back": ("preposition", 0.01), "second": ("determiner", 0.9)}

# How likely each part of speech (columns) is after another (rows), in per mille; what is not written is 1.
_COLUMNS = ("determiner", "adjective", "noun", "verb", "participle", "adverb", "preposition", "conjunction", "auxiliary", "particle",
            "pronoun", "possessive", "stop")  # fmt: skip
_FOLLOWS = {
    #               det  adj noun verb part  adv prep conj  aux  to pron poss stop
    "start":        (500, 130, 250,  20,  30,  20,  40,   1,  20,  5,  60,   1,   5),
    "determiner":   ( 40, 270, 650,   1,   2,  20,  10,   5,   5,  1,   1,   1,   5),
    "adjective":    (  3, 120, 690,  25,  15,   5,  50,  50,   5, 10,   1,   1,  40),
    "noun":         (  8,   5, 110, 250, 250,  30, 300, 110,  90, 25,   5, 150, 170),
    "verb":         (300,  50,  90,   5,  30,  60, 320,  20,   1, 60,  40,   1,  60),
    "participle":   (300,  50,  90,   5,  15,  60, 320,  20,   1, 60,  40,   1,  60),
    "adverb":       (120, 200,  40, 200, 250,  40, 200,  30,  20, 20,  10,   1,  60),
    "preposition":  (480, 110, 250,   4,  60,  10,  50,   5,  10, 10,  50,   1,  15),
    "conjunction":  (220, 170, 270, 180, 180,  40,  50,   1,  20, 10,  40,   1,   5),
    "auxiliary":    (160, 130,  30, 250, 480,  70, 110,   2,  20, 30,   5,   1,   5),
    "particle":     (220,  30,  70, 640,   5,   5,  10,   2,  20,  1,  20,   1,   2),
    "pronoun":      (  5,  20,   5, 300, 200,  40, 280,  60, 200, 30,   5,   1,  60),
    "possessive":   (  5, 190, 780,   1,   5,  10,   1,   1,   1,  1,   1,   1,   2),
    "stop":         (280, 130, 250, 100, 130,  40,  80,  60,  20, 10,  60,   1,  40),
}  # fmt: skip
# After -> before -> log-probability.
_INTO = {after: {before: log(row[column] / 1000) for before, row in _FOLLOWS.items()} for column, after in enumerate(_COLUMNS)}

# Tagged uses of each part of speech in all of WordNet's texts, in thousands.
_TOTALS = {"noun": 87.0, "verb": 48.0, "participle": 48.0, "adjective": 32.0, "adverb": 17.0}
_PARTS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
# Adjectives that Morphy would derive from another one.
_NO_COMPARATIVES = frozenset({"outer", "hinder"})
_ADJECTIVE_ENDINGS = ("ed", "ing", "less", "ful", "ous", "ish", "able", "ible", "ic", "al", "ey", "like")


@dataclass(frozen=True)
class Word:
    """One token of a caption: `text` in lower case; `tag` "noun", "adjective", "comparative", "verb", "adverb" or a closed
    class; `lemma` is the singular of a noun, `text` for all others."""

    text: str
    tag: str
    lemma: str


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption in lower case: words (hyphens kept), numbers, punctuation, and 's and n't apart."""
    return _TOKEN.findall(caption.lower().replace("’", "'"))


def word_source() -> str:
    """Where the parts of speech come from: "nltk" (its WordNet corpus is installed) or "shipped"."""
    return default_lexicon().source


def noun_lemma(word: str, lexicon: Lexicon | None = None) -> str:
    """The WordNet noun of which `word` is a form ("children" -> "child"); `word` itself where there is none."""
    return (lexicon or default_lexicon()).noun_lemma(word.lower())


def tag_words(caption: str, lexicon: Lexicon | None = None) -> list[Word]:
    """The words of a caption with their parts of speech.

    Args:
        caption: any text; a few sentences at most.
        lexicon: the word list to use (default: `default_lexicon()`).

    Returns:
        one `Word` a token, punctuation included, in order; [] for blank text.

    Raises:
        TypeError: `caption` is not a string.
    """
    if not isinstance(caption, str):
        raise TypeError(f"caption: expected a str, got {type(caption).__name__}")
    lexicon = lexicon or default_lexicon()
    tokens = tokenize(caption)
    weights = [_tag_weights(token, lexicon) for token in tokens]
    for start, length in _preposition_runs(tokens):
        weights[start : start + length] = [{"preposition": 0.0}] * length
    return [_word(token, tag, lexicon) for token, tag in zip(tokens, _best_path(weights))]


@lru_cache(maxsize=200_000)
def is_unknown(token: str, lexicon: Lexicon) -> bool:
    """Whether a token is a word of which the lexicon lists no form; words with a closed class and what is no word are known."""
    return token not in _CLOSED and _WORD_SHAPE.fullmatch(token) is not None and not _listed_uses(token, lexicon)


def _word(token: str, tag: str, lexicon: Lexicon) -> Word:
    if tag == "noun":
        return Word(token, tag, lexicon.noun_lemma(token))
    if tag == "adjective" and lexicon.bases(token, "a") and token not in _NO_COMPARATIVES:
        return Word(token, "comparative", token)
    return Word(token, "verb" if tag == "participle" else tag, token)


def _preposition_runs(tokens: list[str]):
    """(start, length) of the runs of tokens that work as one preposition."""
    for start, token in enumerate(tokens):
        for run in _PREPOSITION_RUNS.get(token, ()):
            if tokens[start : start + len(run)] == run:
                yield start, len(run)
                break


def _best_path(weights: list[dict[str, float]]) -> list[str]:
    """The likeliest sequence of tags (Viterbi); ties to the tag named first."""
    scores, steps = {"start": 0.0}, []
    # The end of a caption reads like a full stop.
    for token in [*weights, {"stop": 0.0}]:
        reached, came_from = {}, {}
        for tag, weight in token.items():
            transitions, best = _INTO[tag], -inf
            for previous, score in scores.items():
                total = score + transitions[previous]
                if total > best:
                    best, came_from[tag] = total, previous
            reached[tag] = best + weight
        scores = reached
        steps.append(came_from)
    tag, path = "stop", []
    for came_from in reversed(steps):
        tag = came_from[tag]
        path.append(tag)
    return path[-2::-1]


@lru_cache(maxsize=200_000)
def _tag_weights(token: str, lexicon: Lexicon) -> dict[str, float]:
    """Log-probability of the token given each part of speech that it can be."""
    if token in _CLOSED and token not in _HALF_CLOSED:
        return dict.fromkeys(_CLOSED[token], 0.0)
    if not _WORD_SHAPE.fullmatch(token):
        return {"determiner": 0.0} if token[0].isdigit() else {"stop": 0.0}
    uses = _listed_uses(token, lexicon) or _guessed_uses(token, lexicon)
    weights = {tag: log(count / (1000 * _TOTALS[tag])) for tag, count in uses.items()}
    if token in _HALF_CLOSED:
        tag, share = _HALF_CLOSED[token]
        weights[tag] = max(weights.values()) + log(share / (1 - share))
    return weights


def _listed_uses(token: str, lexicon: Lexicon) -> dict[str, float]:
    """Estimated uses of this very form as each part of speech; {} for words that WordNet does not know."""
    uses: dict[str, float] = {}

    def add(tag: str, count: float) -> None:
        uses[tag] = uses.get(tag, 0.0) + count

    entry = lexicon.entry(token)
    for part, count in entry.counts.items() if entry else ():
        # About two fifths of a verb's uses, and three quarters of a noun's, are its base form. Captions describe more than
        # WordNet's texts do, so an adjective never tagged there ("tan") counts as one that was.
        add(_PARTS[part], {"n": 0.75 * (count + 0.5), "v": 0.4 * (count + 0.5), "a": count + 1.0, "r": count + 0.5}[part])
    if not token.endswith("ss"):
        plural = max((lexicon.count(base, "n") + 0.5 for base in lexicon.bases(token, "n")), default=0.0)
        if plural:
            add("noun", 0.25 * plural)
    verb = max((lexicon.count(base, "v") + 0.5 for base in lexicon.bases(token, "v")), default=0.0)
    if verb:
        add(*("verb", 0.15 * verb) if token.endswith("s") else ("participle", 0.25 * verb))
    if verb and not token.endswith("s"):
        # A participle stands before nouns ("a dressed man"), and the -ing form as a noun ("before jumping").
        uses.setdefault("adjective", 0.01 * verb)
        if token.endswith("ing"):
            uses.setdefault("noun", 0.005 * verb)
    if lexicon.bases(token, "a") and "adjective" not in uses:
        add("adjective", 0.1 * max(lexicon.count(base, "a") + 0.5 for base in lexicon.bases(token, "a")))
    return uses


def _guessed_uses(token: str, lexicon: Lexicon) -> dict[str, float]:
    """Uses of a word that WordNet does not know, from its shape: a rare noun, unless its ending or its parts say otherwise."""
    first, _, last = token.rpartition("-")
    if first:
        if last.endswith(("ed", "ing", "old")):
            return {"adjective": 0.5}
        uses = {tag: count for tag, count in _listed_uses(last, lexicon).items() if tag in ("noun", "adjective")}
        return {"noun": 0.1, "adjective": 0.1} if not uses else {tag: 0.5 for tag in ("noun", "adjective")}
    if token.endswith("ly"):
        return {"adverb": 0.5, "adjective": 0.02}
    uses = {"noun": 0.5}
    if token.endswith(_ADJECTIVE_ENDINGS):
        uses["adjective"] = 0.1
    if token.endswith(("ed", "ing")):
        uses["participle"] = 0.5
    elif token.endswith("s"):
        uses["verb"] = 0.02
    return uses
