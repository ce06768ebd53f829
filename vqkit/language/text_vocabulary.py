"""Texts as tokens of a prior: the words of the training texts, each one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

_UNKNOWN, _END, _MASK = "[unknown]", "[end]", "[mask]"


class TextVocabulary:
    """Words, lower-cased and split at spaces and punctuation, as int64 tokens; over a WordLevel model of `tokenizers`.

    Attributes: unknown, end, mask: tokens of their own; `len` counts all tokens.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.unknown, self.end, self.mask = (tokenizer.token_to_id(name) for name in (_UNKNOWN, _END, _MASK))

    @classmethod
    def build(cls, texts: Iterable[str], size: int = 8192, min_count: int = 1) -> Self:
        """The most frequent words of the texts, ties in their order of the alphabet; `size` counts the three tokens of its own too."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
        special = [_UNKNOWN, _END, _MASK]
        tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=size, min_frequency=min_count, special_tokens=special,
                                                                       show_progress=False))
        if tokenizer.get_vocab_size() == len(special):
            raise ValueError("texts: expected at least one word, got none")
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `to_json` gave it. Raises ValueError for anything else."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as broken:
            raise ValueError(f"vocabulary: not a vocabulary of texts: {broken}") from broken
        return cls(tokenizer)

    def to_json(self) -> str:
        return self._tokenizer.to_str(pretty=True)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without an end."""
        return self._tokenizer.encode(text).ids

    def encode(self, texts: Iterable[str], length: int) -> Tensor:
        """Texts to int64 (B, length): words, `end`, then -1; what is longer is cut and has no end."""
        rows = []
        for encoded in self._tokenizer.encode_batch(list(texts)):
            row = [*encoded.ids, self.end][:length]
            rows.append(row + [-1] * (length - len(row)))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, length)

    def decode(self, tokens: Tensor) -> list[str]:
        """int64 (B, T) to texts: words with spaces between, up to the end; -1 is skipped."""
        texts = []
        for row in tokens.tolist():
            row = row[: row.index(self.end)] if self.end in row else row
            texts.append(" ".join(self._tokenizer.id_to_token(token) for token in row if token >= 0))
        return texts
