"""The adjective-noun graph of captions: which adjective stands directly before which noun, and how often.

Source: arXiv 2403.10071 (VQCT), the graph of related words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Iterable, Sequence

import torch

from vqkit.language.lexicon import Lexicon, default_lexicon
from vqkit.language.words import is_unknown, tag_words


@dataclass
class WordCounts:
    """How often captions use each adjective and noun (lemma), and each adjective directly before a noun.

    `adjectives` and `nouns` map words to counts, `pairs` maps (adjective, noun) to counts; `captions` is how many were read, `words` how
    many words they have of any kind, and `unknown` maps those that the lexicon does not list to counts.
    """

    adjectives: Counter = field(default_factory=Counter)
    nouns: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)
    captions: int = 0
    words: int = 0
    unknown: Counter = field(default_factory=Counter)


def count_words(captions: Iterable[str], *, lexicon: Lexicon | None = None) -> WordCounts:
    """Count adjectives, nouns and adjective-noun pairs in captions.

    A pair is an adjective directly before a noun, so "small black dog" counts (black, dog) and not (small, dog).

    Args:
        captions: any iterable of strings, read once; blank ones are skipped.
        lexicon: the word list to use (default: `default_lexicon()`).

    Returns:
        WordCounts.

    Raises:
        TypeError: `captions` is one string, or holds something else than strings.
        ValueError: no caption has any text.
    """
    if isinstance(captions, str):
        raise TypeError("captions: expected an iterable of strings, got one str")
    lexicon, counts = lexicon or default_lexicon(), WordCounts()
    for caption in captions:
        words = tag_words(caption, lexicon)
        if not words:
            continue
        counts.captions += 1
        for word, after in zip(words, [*words[1:], None]):
            counts.words += word.tag != "stop" and word.text[0].isalpha()
            counts.unknown.update([word.text] if is_unknown(word.text, lexicon) else ())
            if word.tag == "noun":
                counts.nouns[word.lemma] += 1
            elif word.tag == "adjective":
                counts.adjectives[word.text] += 1
                if after is not None and after.tag == "noun":
                    counts.pairs[word.text, after.lemma] += 1
    if not counts.captions:
        raise ValueError("captions: expected at least one caption with text, got none")
    return counts


def word_edges(pairs: Counter, adjectives: Sequence[str], nouns: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The edges of the word graph among the words that are kept.

    Args:
        pairs: (adjective, noun) -> count.
        adjectives, nouns: the kept words in the order of their nodes; nouns come after all adjectives.

    Returns:
        edges (E, 2) int64: adjective node, noun node, in ascending order, each pair once; counts (E,) int64.
    """
    adjective_ids = {word: node for node, word in enumerate(adjectives)}
    noun_ids = {word: node for node, word in enumerate(nouns, start=len(adjective_ids))}
    rows = sorted(
        (adjective_ids[adjective], noun_ids[noun], count)
        for (adjective, noun), count in pairs.items()
        if adjective in adjective_ids and noun in noun_ids and count > 0
    )
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    return table[:, :2].contiguous(), table[:, 2].contiguous()
