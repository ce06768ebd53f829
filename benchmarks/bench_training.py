"""One training step of VQGAN and VQCT, with vqkit's quantizer and with a naive one in its place."""

import pytest
import torch
from torch import nn

from benchmarks.naive import NaiveQuantizer, gather_index_add
from vqkit.language import Vocabulary
from vqkit.models import create
from vqkit.quantizers import Quantized

_SMALL = {"channels": 16, "channel_multipliers": (1, 2, 4, 8), "num_res_blocks": 1, "latent_dim": 128, "code_dim": 64}
_WORDS = 1024


class NaiveHalves(nn.Module):
    """Two naive quantizers side by side, the first averaging two codes, with learned codes or with generated ones."""

    def __init__(self, dim: int, sizes: tuple[int, int], generate: nn.Module | None = None):
        super().__init__()
        self.parts = nn.ModuleList(NaiveQuantizer(dim, size, top_k=k) for size, k in zip(sizes, (2, 1)))
        self.generate = generate
        self.sizes = sizes

    def forward(self, x):
        codes = [None, None] if self.generate is None else self.generate().split(self.sizes)
        results = [part(half, table) for part, half, table in zip(self.parts, x.chunk(2, 1), codes)]
        loss = sum(loss for _, loss in results)
        return Quantized(torch.cat([q for q, _ in results], 1), None, loss, {"codebook": loss}, torch.ones(1))


class NaiveTransfer(nn.Module):
    """VQCT's two graph convolutions with gather + index_add; the parameters of the codebook given."""

    def __init__(self, codebook):
        super().__init__()
        graph = codebook.graph
        self.network = codebook.network
        self.register_buffer("vectors", codebook.word_vectors)
        self.register_buffer("rows", torch.repeat_interleave(torch.arange(graph.num_nodes), graph.offsets.diff()))
        self.register_buffer("columns", graph.neighbours)
        self.register_buffer("weights", graph.weights)

    def forward(self):
        hidden = self._convolved(self.network.first, self.vectors).relu()
        return self._convolved(self.network.second, nn.functional.dropout(hidden, 0.5))

    def _convolved(self, layer, features):
        return gather_index_add(self.rows, self.columns, self.weights, features @ layer.weight) + layer.bias


def _vocabulary() -> Vocabulary:
    """As many words and relations as the recipe has, without a language model."""
    adjectives = [f"a{i}" for i in range(_WORDS)]
    nouns = [f"n{i}" for i in range(_WORDS)]
    pairs = (torch.rand(13_000, 2) ** 2 * _WORDS).long().unique(dim=0)
    edges = pairs + torch.tensor([0, _WORDS])
    return Vocabulary(adjectives, nouns, edges, torch.ones(len(edges), dtype=torch.int64), torch.randn(2 * _WORDS, 384), "random")


def _model(name: str, contender: str):
    if name == "vqgan":
        model = create("vqgan", **_SMALL, codebook_size=(_WORDS, _WORDS), selections=(2, 1))
    else:
        model = create("vqct", vocabulary=_vocabulary(), **_SMALL)
    if contender != "vqkit":
        transfer = NaiveTransfer(model.quantizer.shared_codebook) if name == "vqct" else None
        model.quantizer = NaiveHalves(_SMALL["code_dim"], (_WORDS, _WORDS), transfer)
    return model


@pytest.mark.parametrize("contender", ["vqkit", "naive quantizer"])
@pytest.mark.parametrize("name", ["vqgan", "vqct"])
def test_training_step(measure, device, name, contender):
    model = _model(name, contender).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4, betas=(0.5, 0.9))
    images = torch.rand(32, 3, 64, 64, device=device) * 2 - 1

    def step():
        latents = model.to_codes(model.encoder(images))
        found = model.quantizer(latents)
        reconstruction = model.decoder(model.from_codes(found.quantized))
        optimizer.zero_grad()
        ((reconstruction - images).abs().mean() + found.loss).backward()
        optimizer.step()

    measure(step, f"{name} training step, batch 32 at 64x64, 2 x {_WORDS} codes of 64", contender, rounds=5)
