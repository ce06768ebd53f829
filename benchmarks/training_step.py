"""One training step of a tokenizer on random pictures and words, with vqkit's quantizer or a naive one in its place.

Models need packages that operators do not: they are imported where one is built, so that the operators' cases can do without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.naive import cdist_topk
from benchmarks.naive_recipes import naive_quantizer
from vqkit.ops import nearest_codes

if TYPE_CHECKING:
    from vqkit.language import Vocabulary
    from vqkit.models import Tokenizer


@dataclass(frozen=True)
class Setting:
    """What is trained: the model's name and configuration; for "vqct" how many adjectives and nouns, edges, and a vector's width."""

    model: str
    config: dict
    batch_size: int
    resolution: int
    words: tuple[int, int] | None = None
    edges: int = 0
    word_dim: int = 512


def random_vocabulary(words: tuple[int, int], edges: int, word_dim: int) -> Vocabulary:
    """As many words and relations as asked for, without a language model; a few words have most of the edges."""
    from vqkit.language import Vocabulary

    adjectives, nouns = ([f"{kind}{i}" for i in range(size)] for kind, size in zip("an", words))
    pairs = (torch.rand(edges, 2) ** 2 * torch.tensor(words)).long().unique(dim=0) + torch.tensor([0, words[0]])
    return Vocabulary(adjectives, nouns, pairs, torch.ones(len(pairs), dtype=torch.int64), torch.randn(sum(words), word_dim), "random")


def build(setting: Setting, contender: str) -> Tokenizer:
    """The model in training mode, its quantizer "vqkit" or naive."""
    from vqkit.models import create

    config = dict(setting.config)
    if setting.words:
        config["vocabulary"] = random_vocabulary(setting.words, setting.edges, setting.word_dim)
    model = create(setting.model, **config)
    if contender != "vqkit":
        model.quantizer = naive_quantizer(model.quantizer)
    return model.train()


def training_step(model: Tokenizer, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """Forward, mean absolute error and the quantizer's loss, backward, update; the networks in bf16 on CUDA."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        found = model.quantizer(model.to_codes(model.encoder(images)))
        reconstruction = model.decoder(model.from_codes(found.quantized))
    optimizer.zero_grad()
    ((reconstruction.float() - images).abs().mean() + found.loss).backward()
    optimizer.step()


def step_call(setting: Setting, contender: str, images: Tensor):
    """The call to time."""
    model = build(setting, contender).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4, betas=(0.5, 0.9))
    return lambda: training_step(model, optimizer, images)


def quantizer_call(setting: Setting, contender: str, latents: Tensor, upstream: Tensor):
    """The quantizer's part of the step alone: codebook, search, and the gradients to latents and codebook."""
    quantizer = _quantizer(setting, contender, latents.device)
    gradients = (upstream, torch.ones((), device=latents.device))

    def call():
        found = quantizer(latents)
        return torch.autograd.grad((found.quantized, found.loss), (latents, *quantizer.parameters()), gradients)

    return call


def search_call(setting: Setting, contender: str, latents: Tensor, _: Tensor):
    """The searches of all parts, in codes that are there already."""
    quantizer = _quantizer(setting, "vqkit", latents.device)
    codes = [part.detach() for part in (quantizer.codes if setting.words else [quantizer.codes])]
    selections = quantizer.selections if setting.words else [quantizer.top_k]
    parts = latents.detach().movedim(1, -1).flatten(0, -2).chunk(len(codes), -1)
    search = (lambda *problem: nearest_codes(*problem)[1]) if contender == "vqkit" else cdist_topk
    problems = list(zip((part.contiguous() for part in parts), codes, selections))
    return lambda: [search(*problem) for problem in problems]


def generation_call(setting: Setting, contender: str, upstream: Tensor):
    """The codes from the words, and the gradient back to the network."""
    quantizer = _quantizer(setting, contender, upstream.device)
    generate = quantizer.shared_codebook if contender == "vqkit" else quantizer.generate
    return lambda: torch.autograd.grad(generate(), tuple(generate.parameters()), upstream)


def _quantizer(setting: Setting, contender: str, device: torch.device) -> nn.Module:
    # The networks around it have no part in these times: narrow ones are made at once.
    narrow = replace(setting, config=setting.config | {"channels": 32, "num_res_blocks": 1, "attention": False})
    return build(narrow, contender).quantizer.to(device)
