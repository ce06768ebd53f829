"""Captions in the training of a tokenizer: which one a picture gets, what is read of it, and the module that learns from it.

All that is drawn is a hash of the seed and of the place in the training order: a resumed run draws the same, and so do two ranks.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.sources import Source, captions_of, has_captions
from training.tokenizer_settings import TokenizerSettings
from vqkit.language import CaptionTokens, TextEncoder, open_text_encoder
from vqkit.objectives import CaptionTranslation, GuidanceText, LanguageGuidance, TextObjective, TranslationText, mask_rate

FILE = "guidance.safetensors"
_TRIED = 1000
_logger = logging.getLogger("training")


class Captions:
    """The captions of a split that a text model can read, one a picture."""

    def __init__(self, source: Source, encoder: TextEncoder, seed: int):
        self.source, self.encoder, self.seed = source, encoder, seed

    def check(self) -> None:
        """Try the first ones that fit on the text model.

        Raises ValueError where there is no caption, none that fits, or none of which the model knows a word; warns where it knows less
        than half of what they say, as of another language.
        """
        name, model = self.source.name, Path(self.encoder.name).name
        if not has_captions(self.source):
            raise ValueError(f"guidance: {name} has no captions; expected a metadata.jsonl with \"captions\" of its pictures")
        tried = list(islice((caption for index in range(len(self.source)) for caption in self._fitting(index)), _TRIED))
        if not tried:
            raise ValueError(f"guidance: all captions of {name} are too long: expected some of at most {self.encoder.context} tokens of {model}")
        tokens = self.encoder.tokenize(tried)
        known, said = int((tokens.words >= 0).sum()), int(tokens.content.sum())
        if not known:
            raise ValueError(f"guidance: {model} knows no word of the captions of {name}, such as {tried[0]!r}; expected a text_encoder of their "
                             "language")
        if 2 * known < said:
            _logger.warning("guidance: %s knows %.0f%% of what the captions of %s say, such as %r; a text_encoder of their language would know more",
                            model, 100 * known / said, name, tried[0])

    def draw(self, keys: list[tuple[int, int]], indices: list[int]) -> tuple[CaptionTokens, Tensor]:
        """One random caption a picture, of those that fit, and draws (B, T) uniform in 0 .. 1 for its words.

        keys: (epoch, index) as ordered, which seed the draws; indices: the pictures that are shown, whose captions are read.
        """
        chosen = [self._one(key, index) for key, index in zip(keys, indices, strict=True)]
        draws = [torch.rand(self.encoder.context, generator=_generator(f"mask/{self.seed}/{epoch}/{index}")) for epoch, index in keys]
        return self.encoder.tokenize(chosen), torch.stack(draws)

    def _one(self, key: tuple[int, int], index: int) -> str | None:
        captions = self._fitting(index)
        epoch, wanted = key
        return captions[_number(f"caption/{self.seed}/{epoch}/{wanted}") % len(captions)] if captions else None

    def _fitting(self, index: int) -> list[str]:
        """Longer ones are left out, as published."""
        return [caption for caption in captions_of(self.source, index) if self.encoder.fits(caption)]


class Guide:
    """A run's guidance: the frozen text model, the module that is trained, its running mean and its captions.

    text_encoder: as of `vqkit.language.open_text_encoder`; code_dim: channels of the quantised map; grid: its side.
    Raises ValueError where the text model cannot be opened, naming what to install or to give, or can read no caption.
    """

    objective: type[TextObjective]
    section: str

    def __init__(self, settings: TokenizerSettings, source: Source, code_dim: int, grid: int, device: torch.device):
        chosen = getattr(settings, self.section)
        self.encoder = _opened(chosen.text_encoder, self.section)
        self.captions = Captions(source, self.encoder, settings.seed)
        self.captions.check()
        self.encoder.to(device)
        module = self.objective(code_dim, grid, self.encoder.token_embeddings, chosen.config, self.encoder.context)
        self.module = module.to(device).train()
        self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.seed, self.device = settings.seed, device

    def read(self, number: int, keys: list[tuple[int, int]], indices: list[int]) -> NamedTuple:
        """What the module wants to know of the captions of pass `number` of the run."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """The running mean, beside the model."""
        self.average.save(folder / FILE, {"name": self.encoder.name, "identity": self.encoder.identity})

    def describe(self) -> str:
        """The terms that it adds to the loss."""
        raise NotImplementedError


class AlignmentGuide(Guide):
    """Guidance by LG-VQ's three losses."""

    objective, section = LanguageGuidance, "lg"
    module: LanguageGuidance

    def read(self, number: int, keys: list[tuple[int, int]], indices: list[int]) -> GuidanceText:
        """The captions, some of their words masked."""
        tokens, draws = self.captions.draw(keys, indices)
        rate = mask_rate(torch.rand((), generator=_generator(f"rate/{self.seed}/{number}"), dtype=torch.float64).item())
        masked = self.module.choose_masked(tokens, rate, draws)
        return self.module.read(self.encoder, tokens.to(self.device), masked.to(self.device))

    def describe(self) -> str:
        config = self.module.config
        weights = (("global alignment", config.alpha), ("masked words", config.beta), ("relation", config.gamma))
        said = " + ".join(f"{weight:g} x {name}" for name, weight in weights if weight)
        return f"{said} (LG-VQ, {Path(self.encoder.name).name}, mask={config.mask})"


class TranslationGuide(Guide):
    """Guidance by translating codes into captions."""

    objective, section = CaptionTranslation, "vlt"
    module: CaptionTranslation

    def read(self, number: int, keys: list[tuple[int, int]], indices: list[int]) -> TranslationText:
        """The captions."""
        tokens, _ = self.captions.draw(keys, indices)
        return self.module.read(tokens.to(self.device))

    def describe(self) -> str:
        return f"{self.module.config.weight:g} x translation into captions (VQCT-VLT, tokens of {Path(self.encoder.name).name})"


_GUIDES: dict[str, type[Guide]] = {"lgvq": AlignmentGuide, "translation": TranslationGuide}


def create_guide(settings: TokenizerSettings, source: Source, code_dim: int, grid: int, device: torch.device) -> Guide:
    """The guidance that the settings ask for, with fresh weights; arguments and errors as of `Guide`."""
    return _GUIDES[settings.guidance](settings, source, code_dim, grid, device)


def load_guidance(folder: Path, device: torch.device) -> tuple[TextObjective, TextEncoder]:
    """The guidance beside a model, of the kind that it was trained with, and its text model.

    Raises FileNotFoundError where there is none; ValueError where the text model is not here or another one.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"guidance: there is no {path}")
    described = TextObjective.described(path)
    noted, kind = described["text_encoder"], _GUIDES[described["kind"]]
    encoder = _opened(noted["name"], kind.section)
    if encoder.identity != noted["identity"]:
        raise ValueError(f"guidance: {path} was trained with {noted['identity']}, the {noted['name']} that is here is {encoder.identity}")
    return kind.objective.load(path, encoder.token_embeddings).to(device), encoder.to(device)


def _opened(name: str, section: str) -> TextEncoder:
    try:
        return open_text_encoder(name)
    except RuntimeError as missing:
        reason = str(missing).split(". Or set VQKIT_CACHE")[0]
        raise ValueError(f"{section}.text_encoder: {reason}; or give --{section}.text-encoder the folder of a transformers text model (a CLIP, a BERT)") \
            from missing


def _generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(_number(text))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
