"""All scores of captions at once."""

from __future__ import annotations

from collections.abc import Sequence

from vqkit.metrics.bleu import bleu
from vqkit.metrics.caption_tokens import Tokenize, caption_tokens
from vqkit.metrics.cider import cider_d
from vqkit.metrics.meteor import meteor
from vqkit.metrics.rouge import rouge_l
from vqkit.metrics.synsets import open_wordnet


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_tokens) -> dict[str, float]:
    """The corpus's `bleu1` .. `bleu4`, `rouge_l`, `cider_d` and, where WordNet is installed, `meteor`; papers print them times 100.

    Arguments and errors as in `bleu`. Without WordNet there is no key `meteor`: a METEOR without synonyms would be another number;
    `meteor` itself says how to install it.
    """
    found = {f"bleu{n}": score for n, score in enumerate(bleu(hypotheses, references, tokenize=tokenize).corpus, 1)}
    found["rouge_l"] = rouge_l(hypotheses, references, tokenize=tokenize).corpus
    found["cider_d"] = cider_d(hypotheses, references, tokenize=tokenize).corpus
    try:
        wordnet = open_wordnet()
    except LookupError:
        return found
    return found | {"meteor": meteor(hypotheses, references, tokenize=tokenize, wordnet=wordnet).corpus}
