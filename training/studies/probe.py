"""The same question about language to any tokenizer, guided or not: what can a new guidance module read from its frozen codes?

An unguided tokenizer has no map from codes to language, so LG-VQ's measures are not defined on it. Here every tokenizer gets a new
module, trained on its frozen codes with the same captions, masked words, start and number of steps; what differs is the codes.
"""

from __future__ import annotations

import itertools
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from training.alignment import measure_alignment
from training.data.batches import PictureDataset, TrainingOrder, to_float
from training.data.sources import Source
from training.distributed import Ranks
from training.guidance import Captions
from training.loop import reproducible
from vqkit.language import TextEncoder, open_text_encoder
from vqkit.models import Tokenizer
from vqkit.objectives import GuidanceConfig, GuidanceText, LanguageGuidance, mask_rate

_BATCH, _LEARNING_RATE, _SEED = 32, 1e-3, 0
# Batches that are gone through in turn; their texts are kept, 3 MB each.
_POOL = 32
# Weights only tell how the shared transformer divides its attention: nothing else is trained.
_CONFIG = GuidanceConfig(alpha=1.0, beta=1.0, gamma=1.0)


class NoTextModel(ValueError):
    """The text model of a probe cannot be opened; the message says what is missing."""


class LanguageProbe:
    """Probes of the tokenizers of one study.

    training, unseen: splits with captions, those that probes learn from and are measured on.
    steps: of each probe, of 32 captioned pictures with Adam 1e-3; at most 1,024 pictures, again and again.
    text_encoder: as of `vqkit.language.open_text_encoder`.

    The text model, pictures and texts are read at the first tokenizer; each further one costs its own passes and the probe's steps.
    """

    def __init__(self, training: Source, unseen: Source, resolution: int, fit: str, steps: int, device: torch.device,
                 text_encoder: str = "minilm"):
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        self.steps, self.device, self.text_encoder = steps, device, text_encoder
        self.seen, self.unseen = (PictureDataset(source, resolution, fit=fit, replace_broken=source is training)
                                  for source in (training, unseen))

    def describe(self) -> dict:
        """What its numbers depend on besides the tokenizer."""
        return {"steps": self.steps, "text_encoder": self.text_encoder, "pictures": self.seen.source.name, "seed": _SEED}

    def measure(self, model: Tokenizer) -> dict:
        """Train a probe on the model's codes and measure it: the numbers of `alignment.measure_alignment`, "probe_" in front of each.

        The model is moved to the probe's device, frozen and in eval mode. {} where no unseen picture has a caption that fits.
        Raises NoTextModel.
        """
        with reproducible(self.device), torch.random.fork_rng():
            module = self._train(model.to(self.device).eval().requires_grad_(False))
            found = measure_alignment(model, module, self._encoder, self.unseen, Ranks(0, 1, self.device), seed=_SEED)
        return {f"probe_{name}": value for name, value in found.items() if isinstance(value, float)}

    def _train(self, model: Tokenizer) -> LanguageGuidance:
        texts = self._texts
        with torch.no_grad():
            maps = [model(to_float(images, self.device)).quantized for images, _ in texts]
        # The same start and dropout for every tokenizer of the study.
        torch.manual_seed(_SEED)
        module = self._new(maps[0].shape[1], maps[0].shape[2]).to(self.device).train()
        optimizer = torch.optim.Adam(module.parameters(), _LEARNING_RATE)
        batches = itertools.islice(itertools.cycle(zip(maps, texts)), self.steps)
        for quantized, (_, text) in tqdm(batches, "probe", self.steps, unit="step", leave=False, mininterval=1):
            loss, _ = module(quantized, text)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return module.eval()

    @cached_property
    def _encoder(self) -> TextEncoder:
        try:
            return open_text_encoder(self.text_encoder).to(self.device)
        except (ValueError, RuntimeError) as missing:
            raise NoTextModel(f"text_encoder: {missing}") from missing

    @cached_property
    def _texts(self) -> list[tuple[Tensor, GuidanceText]]:
        """Pictures and texts of the pool, some words masked."""
        # Any shape: it only chooses masked words and asks the text model.
        reader, captions, found = self._new(1, 1), Captions(self.seen.source, self._encoder, _SEED), []
        generator = torch.Generator().manual_seed(_SEED)
        order = TrainingOrder(len(self.seen), _BATCH, _SEED, last=min(self.steps, _POOL))
        for keys in tqdm(order, "captions", leave=False, mininterval=1):
            images, indices = self.seen.__getitems__(keys)
            tokens, draws = captions.draw(keys, indices.tolist())
            masked = reader.choose_masked(tokens, mask_rate(torch.rand((), generator=generator, dtype=torch.float64).item()), draws)
            found.append((images, reader.read(self._encoder, tokens.to(self.device), masked.to(self.device))))
        return found

    def _new(self, dim: int, grid: int) -> LanguageGuidance:
        return LanguageGuidance(dim, grid, self._encoder.token_embeddings, _CONFIG, self._encoder.context)
