"""METEOR: words matched by form, stem and meaning, in few pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vqkit.metrics.caption_tokens import Scores, Tokenize, caption_tokens, tokenized
from vqkit.metrics.meteor_words import EXACT, FUNCTION_WORDS, WordMatcher, meteor_tokens
from vqkit.metrics.synsets import open_wordnet

# Precision against recall, fragmentation (power and weight), content words against function words, and the weights of the stages.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = (1.0, 0.6, 0.8)
_BEAM = 40

Match = tuple[int, int]


def meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_tokens, wordnet=None
) -> Scores:
    """METEOR of one caption a picture against that reference of the picture with which it scores best, 0 .. 1.

        METEOR = F (1 - 0.6 (chunks / matches)^0.2),  F = 1 / (0.15 / P + 0.85 / R)
        P = sum over matched words of the caption of w_stage d / sum over its words of d,  R the same of the reference
        w = 1 for the same word, 0.6 for the same stem, 0.8 for synonyms;  d = 0.75, for function words 0.25

    Words are aligned one to one, so that most match exactly, in the fewest chunks (matches that follow one another in both), with the
    least distance: a beam of 40. A caption that matches its reference whole, in order, has no penalty. The corpus score is the same formula
    of the sums over all pictures.

    Args:
        hypotheses, references: a caption for each picture, and one or more references.
        tokenize: text to tokens, which are then split as METEOR does; `str.split` for text that is tokenised already.
        wordnet: NLTK's WordNet reader; None: `open_wordnet()`.

    Raises ValueError for lengths that differ, no picture, or a picture without reference; LookupError without WordNet.

    Source: Denkowski and Lavie, Meteor Universal, WMT 2014, with the parameters of METEOR 1.5 for English. Its last stage, paraphrases
    from a table of 60 MB (weight 0.6), is left out: scores are lower than METEOR 1.5's where phrases of the table match, 0.243 against
    0.253 for one human caption of a Flickr8k picture against its other four. Without that stage they are equal to METEOR 1.5's but for a
    few synonyms (18 of 3,000 captions): METEOR takes words of two parts of speech for synonyms where WordNet's numbers for them happen to
    be the same ("run", "atrial").
    """
    captions, truths = tokenized(hypotheses, references, tokenize)
    matcher = _matcher(wordnet or open_wordnet())
    best = []
    for caption, own in zip(captions, truths, strict=True):
        words = meteor_tokens(caption)
        rows = [_statistics(words, meteor_tokens(reference), matcher) for reference in own]
        best.append(max(rows, key=_score))
    total = [sum(column) for column in zip(*best, strict=True)]
    return Scores(_score(total), tuple(map(_score, best)))


@lru_cache(maxsize=2)
def _matcher(wordnet) -> WordMatcher:
    return WordMatcher(wordnet)


def _statistics(caption: Sequence[str], reference: Sequence[str], matcher: WordMatcher) -> list[int]:
    """Counts of which the score is made: for the caption, then for the reference, words, function words, and matches of each stage, first of
    content words, then of function words; at last the chunks, 0 where one holds both texts whole."""
    sides = [_counts(caption), _counts(reference)]
    chunks, end = 0, None
    for word, match in zip(reference, align(caption, reference, matcher), strict=True):
        if match is not None:
            place, stage = match
            chunks += place != end
            for side, matched in zip(sides, (caption[place], word), strict=True):
                side[2 + stage + len(_WEIGHTS) * (matched in FUNCTION_WORDS)] += 1
        end = None if match is None else match[0] + 1
    whole = chunks == 1 and all(sum(side[2:]) == side[0] for side in sides)
    return [*sides[0], *sides[1], 0 if whole else chunks]


def _counts(words: Sequence[str]) -> list[int]:
    return [len(words), sum(word in FUNCTION_WORDS for word in words)] + [0] * (2 * len(_WEIGHTS))


def _score(row: Sequence[int]) -> float:
    half, chunks = len(row) // 2, row[-1]
    (precision, matched), (recall, other_matched) = map(_matched_share, (row[:half], row[half:-1]))
    if not matched:
        return 0.0
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    return mean * (1 - _GAMMA * (chunks / ((matched + other_matched) / 2)) ** _BETA)


def _matched_share(side: Sequence[int]) -> tuple[float, int]:
    """The weighted share of a text's words that match, and how many match.

    In METEOR's order of operations: which of two references that score alike is chosen depends on the last bit.
    """
    words, functions, matches = side[0], side[1], side[2:]
    length = _DELTA * (words - functions) + (1 - _DELTA) * functions
    weighted = 0.0
    for importance, counts in ((_DELTA, matches[: len(_WEIGHTS)]), (1 - _DELTA, matches[len(_WEIGHTS) :])):
        for count, weight in zip(counts, _WEIGHTS, strict=True):
            weighted += count * weight * importance
    return weighted / length if words else 0.0, sum(matches)


def align(caption: Sequence[str], reference: Sequence[str], matcher: WordMatcher) -> list[Match | None]:
    """For each word of the reference its place in the caption and the stage of the match, or None.

    A path's distance, which decides last, counts at a word those of the matches tried before the one taken, as METEOR 1.5 does.
    """
    options: list[list[Match]] = []
    for word in reference:
        found = [(place, stage) for place, other in enumerate(caption) for stage in matcher.stages(other, word)]
        options.append(sorted(found, key=lambda match: match[1]))
    if tuple(caption) == tuple(reference):
        options = [[match for match in own if match[1] == EXACT] for own in options]
    taken = Counter(place for own in options for place, _ in own)
    certain = [len(own) == 1 and taken[own[0][0]] == 1 for own in options]
    used = sum(1 << own[0][0] for own, sure in zip(options, certain, strict=True) if sure)

    # Exact matches (negative: more come first), chunks closed, distance, end of the open chunk or -1, words used, and the matches so far.
    paths = [(0, 0, 0, -1, used, ())]
    for place, (own, sure) in enumerate(zip(options, certain, strict=True)):
        longer = []
        for exact, chunks, distance, end, used, matches in _leading(paths):
            for start, stage in own:
                if sure or not used >> start & 1:
                    apart = abs(place - start)
                    rank = exact - (stage == EXACT), chunks + (end not in (-1, start)), distance + apart * sure
                    longer.append((*rank, start + 1, used | 1 << start, (*matches, (start, stage))))
                    distance += apart
            if not sure:
                longer.append((exact, chunks + (end != -1), distance, -1, used, (*matches, None)))
        paths = longer
    closed = [(exact, chunks + (end != -1), distance, matches) for exact, chunks, distance, end, _, matches in _leading(paths)]
    return list(min(closed, key=lambda path: path[:3])[-1])


def _leading(paths: list[tuple]) -> list[tuple]:
    return sorted(paths, key=lambda path: path[:3])[:_BEAM]
