"""Tokenizers and priors by name. A new one is its file and one line here."""

import difflib
import importlib
import os
from collections.abc import Iterable

from vqkit.models.checkpoint import read_config
from vqkit.models.pretrained import PretrainedModel
from vqkit.models.segments import Segment
from vqkit.models.token_prior import TokenPrior
from vqkit.models.tokenizer import Tokenizer

_MODELS = {
    "adq": "vqkit.models.adq:ADQ",
    "raq": "vqkit.models.raq:RAQ",
    "raq-vqgan": "vqkit.models.raq_vqgan:RAQVQGAN",
    "rqvae": "vqkit.models.rqvae:RQVAE",
    "sgc-vqgan": "vqkit.models.sgc_vqgan:SGCVQGAN",
    "v2l": "vqkit.models.v2l:V2L",
    "vit-vqgan": "vqkit.models.vit_vqgan:ViTVQGAN",
    "vqct": "vqkit.models.vqct:VQCT",
    "vqgan": "vqkit.models.vqgan:VQGAN",
    "vqvae": "vqkit.models.vqvae:VQVAE",
}
_PRIORS = {
    "diffusion-prior": "vqkit.models.diffusion_prior:DiffusionPrior",
    "masked-prior": "vqkit.models.masked_prior:MaskedPrior",
    "prior": "vqkit.models.prior:Prior",
}


def names() -> list[str]:
    """The names that `create` knows."""
    return sorted(_MODELS)


def create(name: str, **config) -> Tokenizer:
    """A tokenizer with fresh weights, drawn from torch's generator.

    Args:
        name: one of `names()`.
        config: fields of the model's configuration, its `Config` (`VQVAEConfig`, `VQGANConfig`, ...); what is left out has its published
            value. "vqct" and "v2l" also need `vocabulary`, a `vqkit.language.Vocabulary`.

    Raises ValueError for another name or a value out of range, TypeError for a field that the model does not have.
    """
    return _find(name, _MODELS).create(**config)


def prior_names() -> list[str]:
    """The names that `create_prior` knows."""
    return sorted(_PRIORS)


def create_prior(name: str, segments: Iterable[Segment], **config) -> TokenPrior:
    """A prior with fresh weights over these segments, drawn from torch's generator; `config` are fields of its `Config`.

    Raises ValueError for another name or a value out of range, TypeError for a field that the prior does not have.
    """
    return _find(name, _PRIORS).create(segments=tuple(segments), **config)


def from_pretrained(folder: str | os.PathLike) -> PretrainedModel:
    """The tokenizer or prior that `save_pretrained` wrote into a folder, in eval mode, on the CPU, with the dtypes it was saved in.

    Raises FileNotFoundError where a file is missing; ValueError where one is damaged or does not fit the model.
    """
    name, config = read_config(folder)
    return _find(name, _MODELS | _PRIORS).load(folder, config)


def _find(name: str, models: dict[str, str]) -> type[PretrainedModel]:
    if name not in models:
        near = difflib.get_close_matches(str(name), models, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(sorted(models))}{hint}")
    module, _, attribute = models[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
