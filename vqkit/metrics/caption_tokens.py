"""Captions as scores take them, and what scores return.

The tokens are those of published caption scores: of the Penn Treebank's kind, lower case, without punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

Tokenize = Callable[[str], Sequence[str]]

_NORMAL = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "…": "...", "½": "1/2", "¼": "1/4",
                         "¾": "3/4", "£": "#", "€": "$", "\xad": "", "\u200b": " ", "\xa0": " "})  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
# The period belongs to these words; "no." only before a number.
_ABBREVIATED = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|vs|etc|jr|sr|sgt|capt|lt|gen|col|gov|sen|rep|rev|hon|inc|corp|co|ltd|bros|mt|ft|dept|est|vol|approx|univ"
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s()\[\]"]*[^\s()\[\]".,!?;:']       # addresses
  | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
  | (?:[a-z]\.){{2,}}(?!\w)                                   # p.m., u.s.a.
  | \b(?:{_ABBREVIATED})\.(?!\w) | \bno\.(?=\s*\d)
  | (?<![\w])'(?:\d0s|n'|tis\b|twas\b)                        # '70s, rock 'n' roll
  | (?<!\w)\d+:\d+(?=[ap]m\b) | (?<!\w)[-+]?\d+(?:[.,:/-]\d+)*(?![\w-])
  | (?<!\w)(?-i:[A-Z])\.(?!\w)                                # initials
  | n't\b | '(?:s|m|d|re|ve|ll|em)\b
  | (?:o|d|[a-z]+[aeiou](?='[aeiou]))'(?=\w)\w+(?:-\w+)*      # o'clock, hors d'oeuvres
  | \w+?(?=n't\b) | \w+(?:[-./]\w+)*?(?=n't\b)
  | \b[a-z]&[a-z] | \w+(?:[-./]\w+)*
  | [!?]+ | [()\[\]{{}}] | \.+ | -+ | [^\s\w]
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"), "lemme": ("lem", "me"),
    "gimme": ("gim", "me"), "'tis": ("'t", "is"), "'twas": ("'t", "was"),
}  # fmt: skip
_PUNCTUATION = re.compile(r"""['"`.?!,:;]|\.+|-+""")


class Scores(NamedTuple):
    """A score of the whole corpus, and one of each example (picture or question)."""

    corpus: float
    each: tuple[float, ...]


@lru_cache(maxsize=200_000)
def caption_tokens(text: str) -> tuple[str, ...]:
    """The tokens of a caption: lower case, "don't" as do n't, "man's" as man 's, quotes, periods, commas, dashes and single ! and ? left out.

    Brackets stay as -lrb-, -rrb-, and so on, and runs of ! and ? stay, as in pycocoevalcap.
    Source: pycocoevalcap's PTBTokenizer (Stanford's tokenizer of 2014, then a list of punctuation), of which this has the rules that
    captions use; what it does with abbreviations, smileys and rare symbols is not followed in every case.
    """
    text = text.translate(_NORMAL)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        token = token.lower()
        if not _PUNCTUATION.fullmatch(token):
            tokens.extend(_SPLIT.get(token) or (_BRACKETS.get(token, token),))
    return tuple(tokens)


def tokenized(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize
) -> tuple[list[tuple[str, ...]], list[list[tuple[str, ...]]]]:
    """The tokens of one hypothesis a picture, and of its references.

    Raises ValueError where the lengths differ, there is no picture, or a picture has no reference; TypeError for a string in place of a
    list of strings.
    """
    if isinstance(hypotheses, str) or any(not isinstance(text, str) for text in hypotheses):
        raise TypeError(f"hypotheses: expected one string a picture, got {hypotheses!r:.80}")
    if len(hypotheses) != len(references):
        raise ValueError(f"references: expected one list a hypothesis, {len(hypotheses)}, got {len(references)}")
    if not len(hypotheses):
        raise ValueError("hypotheses: expected at least one, got none")
    for picture, texts in enumerate(references):
        if isinstance(texts, str):
            raise TypeError(f"references: expected a list of strings for each picture, got the string {texts!r:.80} for picture {picture}")
        if not len(texts):
            raise ValueError(f"references: expected at least one for each picture, got none for picture {picture}")
    return [tuple(tokenize(text)) for text in hypotheses], [[tuple(tokenize(text)) for text in texts] for texts in references]
