"""A small vocabulary and small models of every kind."""

import pytest
import torch

from vqkit.language import Vocabulary
from vqkit.models import create

ADJECTIVES = ["red", "green", "blue", "small", "big", "striped"]
NOUNS = ["circle", "square", "star", "sky", "grass", "house", "cat", "hat", "tree"]
TRUNK = {"channels": 8, "channel_multipliers": (1, 2, 2), "num_res_blocks": 1, "latent_dim": 12}
SMALL = {"channels": 16, "residual_channels": 8, "code_dim": 6, "codebook_size": 32}
KINDS = {
    "adq-ema": ("adq", TRUNK | {"capacity": 96, "code_dims": (6, 12)}),
    "vqvae": ("vqvae", SMALL),
    "vqvae-ema": ("vqvae", {"channels": 16, "codebook_size": 32, "codebook": "ema", "threshold_ema_dead_code": 1}),
    "vqgan": ("vqgan", TRUNK | {"codebook_size": 40}),
    "vqgan-averaged": ("vqgan", TRUNK | {"codebook_size": 40, "selections": (3,), "code_dim": 5}),
    "vqgan-halves": ("vqgan", TRUNK | {"codebook_size": (6, 9), "selections": (2, 1)}),
    "vqgan-ema": ("vqgan", TRUNK | {"codebook_size": 40, "codebook": "ema", "attention": False}),
    "autoencoder": ("vqgan", TRUNK | {"quantize": False, "attention_levels": (-1,)}),
    "vqgan-anchored": ("vqgan", TRUNK | {"codebook_size": 40, "codebook": "anchored"}),
    "vqgan-linear": ("vqgan", TRUNK | {"codebook_size": 40, "codebook": "linear"}),
    "raq-ema": ("raq", SMALL | {"rates": (2, 40)}),
    "raq-learned": ("raq", SMALL | {"codebook": "learned", "rates": (2, 40)}),
    "raq-ema-resize": ("raq", SMALL | {"generator": "resize"}),
    "raq-vqgan-ema": ("raq-vqgan", TRUNK | {"codebook_size": 24, "rates": (2, 30)}),
    "rqvae-ema": ("rqvae", TRUNK | {"codebook_size": 20, "depth": 3, "threshold_ema_dead_code": 0.1}),
    "rqvae-own-ema": ("rqvae", TRUNK | {"codebook_size": 20, "depth": 2, "shared_codebook": False}),
    "sgc-vqgan-ema": ("sgc-vqgan", TRUNK | {"codebook_size": 24, "classes": 5}),
    "vit-vqgan": ("vit-vqgan", {"depth": 1, "width": 16, "heads": 2, "hidden": 24, "patch": 4, "grid": 4, "code_dim": 4, "codebook_size": 24}),
    "v2l": ("v2l", TRUNK),
    "vqct": ("vqct", TRUNK),
    "vqct-gat": ("vqct", TRUNK | {"transfer": "gat", "transfer_dim": 8}),
    "vqct-none": ("vqct", TRUNK | {"transfer": "none", "prior": False}),
    "vqct-nouns": ("vqct", TRUNK | {"parts": "nouns"}),
    "vqct-merged": ("vqct", TRUNK | {"parts": "merged"}),
    "vqct-mlp": ("vqct", TRUNK | {"transfer": "mlp", "code_dim": 7}),
}


@pytest.fixture
def vocabulary():
    generator = torch.Generator().manual_seed(7)
    a = len(ADJECTIVES)
    # "striped", "hat" and "tree" stand alone
    edges = torch.tensor([[0, a], [0, a + 1], [1, a + 4], [2, a + 3], [3, a + 6], [4, a + 5], [2, a]])
    return Vocabulary(
        adjectives=list(ADJECTIVES),
        nouns=list(NOUNS),
        edges=edges,
        edge_counts=torch.tensor([5, 2, 7, 9, 1, 1, 3]),
        vectors=torch.randn(a + len(NOUNS), 20, generator=generator),
        encoder="seeded",
    )


@pytest.fixture
def build(vocabulary):
    """build(kind, **changes) -> a small model of that kind, the same at each call."""

    def build(kind, **changes):
        name, config = KINDS[kind]
        torch.manual_seed(11)
        given = {"vocabulary": vocabulary} if name in ("vqct", "v2l") else {}
        return create(name, **given, **(config | changes))

    return build


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


@pytest.fixture(params=sorted(set(KINDS) - {"autoencoder"}))
def quantized_kind(request):
    return request.param


@pytest.fixture(params=sorted(set(KINDS) - {"autoencoder", "adq-ema", "rqvae-ema", "rqvae-own-ema"}))
def searched_kind(request):
    """Those whose latents are compared with the codes as they are, without projections or other codes between."""
    return request.param
