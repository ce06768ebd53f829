"""Features of every token of a caption from a frozen text model, for objectives that align pictures with words."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from vqkit.language.text_model import FoundModel, LanguageModel, find_model, open_model, quiet_loading
from vqkit.language.vector_cache import VectorCache

_CONTEXT = 30
_REMEMBERED = 512 << 20
_BATCH = 64


class CaptionTokens(NamedTuple):
    """B captions of at most T tokens, on the CPU until `to`.

    ids: int64 (B, T).  visible: bool (B, T), False for padding.  content: bool (B, T), what the caption itself consists of, without
    the tokens that the model adds in front and behind.  words: int64 (B, T), the number of the word that a token is part of, counted
    from 0; -1 for added tokens, punctuation, unknown pieces and padding.  present: bool (B,), False where there is no caption, whose
    tokens are those of the empty text.
    """

    ids: Tensor
    visible: Tensor
    content: Tensor
    words: Tensor
    present: Tensor

    def to(self, device: torch.device | str) -> CaptionTokens:
        return CaptionTokens(*(tensor.to(device) for tensor in self))


class TextFeatures(NamedTuple):
    """states (B, T, W) of the tokens, zero at padding; sentence (B, W), one vector a caption; float32, without gradient."""

    states: Tensor
    sentence: Tensor


class TextEncoder(LanguageModel):
    """A frozen transformers text model read token by token; made by `open_text_encoder`.

    Attributes: name and identity of the model; context, most tokens of a caption; width, W.
    """

    def __init__(self, found: FoundModel):
        super().__init__(found)
        if not self._tokenizer.is_fast:
            raise ValueError(f"encoder: the tokenizer of {found.name!r} does not tell which tokens are one word (it has no fast version)")
        self.name, self.identity, self.context = found.name, found.identity, min(_CONTEXT, self._length)
        self._projection = self._read_projection(found) if self._pooled else None
        self.width = self.token_embeddings.shape[1]
        self._read = lru_cache(maxsize=1 << 16)(self._read_caption)
        # Tokens -> features, until the memory is full. What is not there is computed to the same bits.
        self._remembered: dict[tuple[int, ...], TextFeatures] = {}
        self._room = _REMEMBERED

    @property
    def token_embeddings(self) -> Tensor:
        """The input embeddings (V, W), as stored."""
        return self._model.get_input_embeddings().weight.detach()

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the model, in place; features are computed and kept there."""
        self._model.to(device)
        if self._projection is not None:
            self._projection.to(device)
        self._remembered.clear()
        self._room = _REMEMBERED
        return self

    def fits(self, caption: str) -> bool:
        """Whether a caption has no more than `context` tokens, with those that the model adds."""
        return len(self._read(caption)[0]) <= self.context

    def tokenize(self, captions: Sequence[str | None]) -> CaptionTokens:
        """The tokens of captions, lower-cased, padded to `context`; None stands for no caption.

        Raises ValueError for a caption that does not fit; TypeError for what is neither a string nor None.
        """
        batch, length = len(captions), self.context
        ids = torch.full((batch, length), self._tokenizer.pad_token_id, dtype=torch.int64)
        words = torch.full((batch, length), -1, dtype=torch.int64)
        visible, content = torch.zeros(batch, length, dtype=torch.bool), torch.zeros(batch, length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            found_ids, found_words, found_content = self._read("" if caption is None else caption)
            count = len(found_ids)
            if count > length:
                raise ValueError(f"captions: expected at most {length} tokens, got {count}: {caption!r}")
            ids[row, :count] = torch.tensor(found_ids)
            words[row, :count] = torch.tensor(found_words)
            content[row, :count] = torch.tensor(found_content)
            visible[row, :count] = True
        return CaptionTokens(ids, visible, content, words, torch.tensor([caption is not None for caption in captions], dtype=torch.bool))

    @torch.no_grad()
    def features(self, tokens: CaptionTokens, hidden: Tensor | None = None) -> TextFeatures:
        """States after the last layer norm, and the sentence: CLIP's projected end-of-text state, else the mean of the states.

        Args:
            tokens: as `tokenize` gives them, on the model's device.
            hidden: bool (B, T), tokens that no other one may see, as if masked out of the text. Their own states still know them. At
                least one token of a caption has to stay.

        Without `hidden` features are remembered, in bounded memory; on the CPU they depend on nothing but the caption, to the last bit.
        """
        if hidden is not None:
            return self._padded(self._encode(tokens.ids, tokens.visible, tokens.visible & ~hidden), tokens)
        counts = tokens.visible.sum(1).tolist()
        keys = [tuple(row[:count]) for row, count in zip(tokens.ids.tolist(), counts)]
        made = self._missing(dict.fromkeys(key for key in keys if key not in self._remembered), tokens.ids.device)
        found = [self._remembered.get(key) or made[key] for key in keys]
        states = torch.zeros(*tokens.ids.shape, self.width, device=tokens.ids.device)
        for row, (one, count) in enumerate(zip(found, counts)):
            states[row, :count] = one.states
        return TextFeatures(states, torch.stack([one.sentence for one in found]))

    def _missing(self, keys: dict[tuple[int, ...], None], device: torch.device) -> dict[tuple[int, ...], TextFeatures]:
        """Features of texts that are not remembered; remembered where there is room."""
        ordered, made = sorted(keys, key=len), {}
        # Alone and unpadded on the CPU, where the same run is to give the same bits whatever was asked before.
        size = _BATCH if device.type == "cuda" else 1
        for start in range(0, len(ordered), size):
            chunk = ordered[start : start + size]
            ids = torch.full((len(chunk), max(map(len, chunk))), self._tokenizer.pad_token_id)
            visible = torch.zeros(ids.shape, dtype=torch.bool)
            for row, key in enumerate(chunk):
                ids[row, : len(key)], visible[row, : len(key)] = torch.tensor(key), True
            states, sentence = self._encode(ids.to(device), visible.to(device), visible.to(device))
            for row, key in enumerate(chunk):
                made[key] = TextFeatures(states[row, : len(key)].clone(), sentence[row].clone())
        for key, features in made.items():
            size_of = sum(tensor.numel() * tensor.element_size() for tensor in features)
            if size_of <= self._room:
                self._remembered[key] = features
                self._room -= size_of
        return made

    def _encode(self, ids: Tensor, visible: Tensor, attended: Tensor) -> TextFeatures:
        """Run the model on the columns that any text reaches."""
        length = int(visible.sum(1).max()) if len(ids) else 0
        if not length:
            return TextFeatures(torch.zeros(*ids.shape, self.width, device=ids.device), torch.zeros(len(ids), self.width, device=ids.device))
        outputs = self._model(input_ids=ids[:, :length], attention_mask=attended[:, :length].long())
        states = outputs.last_hidden_state.float()
        if self._pooled:
            pooled = outputs.pooler_output.float()
            return TextFeatures(states, pooled if self._projection is None else self._projection(pooled))
        weights = attended[:, :length].unsqueeze(-1).float()
        return TextFeatures(states, (states * weights).sum(1) / weights.sum(1))

    def _padded(self, features: TextFeatures, tokens: CaptionTokens) -> TextFeatures:
        states = torch.zeros(*tokens.ids.shape, self.width, device=tokens.ids.device)
        states[:, : features.states.shape[1]] = features.states
        return TextFeatures(states.masked_fill_(~tokens.visible.unsqueeze(-1), 0.0), features.sentence)

    def _read_caption(self, caption: str) -> tuple[list[int], list[int], list[bool]]:
        """Ids, word numbers and content of one caption."""
        if not isinstance(caption, str):
            raise TypeError(f"captions: expected strings or None, got {type(caption).__name__}")
        text = caption.lower()
        found = self._tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, content = found["input_ids"], [not special for special in found["special_tokens_mask"]]
        numbers: dict[int, int] = {}
        words = []
        for index, word, (start, end), own in zip(ids, found.word_ids(), found["offset_mapping"], content, strict=True):
            unknown = index == self._tokenizer.unk_token_id
            said = own and word is not None and not unknown and any(letter.isalnum() for letter in text[start:end])
            words.append(numbers.setdefault(word, len(numbers)) if said else -1)
        return ids, words, content

    def _read_projection(self, found: FoundModel) -> torch.nn.Module | None:
        """CLIP's projection of the pooled state; None where the checkpoint has the text half without it."""
        from transformers import CLIPTextModelWithProjection

        local = {"local_files_only": True} if Path(found.location).is_dir() else {}
        with quiet_loading():
            whole, loading = CLIPTextModelWithProjection.from_pretrained(found.location, output_loading_info=True, **local)
        if "text_projection.weight" in loading["missing_keys"]:
            return None
        projection = whole.text_projection.eval().requires_grad_(False)
        if projection.out_features != projection.in_features:
            raise ValueError(f"encoder: {found.name!r} projects {projection.in_features} to {projection.out_features}, expected one width")
        return projection


def open_text_encoder(name: str = "minilm", cache_dir: str | None = None) -> TextEncoder:
    """The frozen text model of that name, on the CPU: "minilm", a folder or a hub name (CLIP text encoders, BERT-likes).

    Raises ValueError for a file of word vectors, which has no tokens, or a model that cannot be read; RuntimeError naming what to
    install where a package is missing.
    """
    found = find_model(name, VectorCache(cache_dir))
    if found.family == "vectors":
        raise ValueError(f"encoder: {name!r} is a file of word vectors; expected a text model (a transformers folder, or 'minilm')")
    # What a model leaves uninitialised is drawn at random while it loads: leave the caller's random numbers alone.
    with torch.random.fork_rng(devices=[]):
        return open_model(found, TextEncoder)
