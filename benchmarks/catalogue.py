"""Which cases are timed on which kind of device, the most important first: what the time does not suffice for is named last."""

import torch

from benchmarks.cases import Case, Shape, aggregate, code_statistics, search, search_two, straight_through
from benchmarks.model_cases import quantizer, recipe, training
from benchmarks.training_step import Setting

_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16

# The published models, f16 at 256x256 in batches of 8, and VQCT's published numbers of words.
_TRUNK = {"channels": 128, "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "latent_dim": 256}
_VQGAN = Setting("vqgan", _TRUNK | {"codebook_size": 1024, "selections": (1,)}, 8, 256)
_VQCT = Setting("vqct", _TRUNK, 8, 256, words=(1949, 4258), edges=40_000)

_TINY_TRUNK = {"channels": 32, "channel_multipliers": (1, 1), "num_res_blocks": 1, "latent_dim": 8}
_TINY_VQGAN = Setting("vqgan", _TINY_TRUNK | {"codebook_size": 7, "selections": (1,)}, 1, 8)
_TINY_VQCT = Setting("vqct", _TINY_TRUNK, 1, 8, words=(5, 6), edges=9, word_dim=6)


def catalogue(device: str) -> list[Case]:
    """All cases of "cuda", or tiny ones of every kind for "cpu"."""
    return _whole() if device == "cuda" else _tiny()


def _whole() -> list[Case]:
    million = 1_000_000
    return [
        search(Shape(million, 8192, 64), _FP32),
        search(Shape(million, 8192, 64), _BF16),
        search(Shape(million, 1024, 8), _FP32),
        search(Shape(million, 1024, 8), _BF16),
        search(Shape(million, 8192, 256), _FP32),
        search(Shape(million, 8192, 256), _BF16),
        *training(_VQCT),
        *training(_VQGAN),
        quantizer(Shape(262_144, 8192, 64)),
        quantizer(Shape(4096, 1024, 256)),
        quantizer(Shape(4096, 16384, 256)),
        straight_through(Shape(million, 1024, 64), _FP32),
        straight_through(Shape(million, 1024, 64), _BF16),
        code_statistics(Shape(million, 1024, 64), _FP32),
        code_statistics(Shape(million, 8192, 64), _BF16),
        aggregate(6207, 40_000, 256),
        aggregate(100_000, 1_000_000, 256),
        search_two(Shape(2048, 1949, 256)),
        search_two(Shape(65_536, 1949, 256)),
        search(Shape(million, 8192, 16), _FP32),
        search(Shape(million, 8192, 16), _BF16),
        search(Shape(million, 8192, 512), _FP32),
        search(Shape(million, 8192, 512), _BF16),
        search(Shape(100_000, 262_144, 64), _FP32),
        search(Shape(100_000, 262_144, 64), _BF16),
        search(Shape(4096, 16384, 256), _FP32),
        *(search(Shape(million, size, dim), _FP16) for size, dim in ((8192, 64), (1024, 8), (8192, 256), (8192, 16), (8192, 512))),
        search(Shape(100_000, 262_144, 64), _FP16),
        *_recipes(),
    ]


def _recipes() -> list[Case]:
    """In published sizes, as far as there are any; batches that one GPU holds."""
    words = {"adjectives": 1949, "nouns": 4258}
    return [
        recipe("vqct-f16", 8, 256),
        recipe("vqgan-f16", 8, 256),
        recipe("vqvae", 32, 256, model={"channels": 128}),
        recipe("cvq-f16", 8, 256),
        recipe("simvq", 8, 256, model=_TRUNK | {"code_dim": 128, "codebook_size": 65_536, "selections": (1,)}),
        recipe("v2l", 8, 256, model=_TRUNK | {"code_dim": 256}, **words),
        recipe("adq", 8, 256, model=_TRUNK | {"code_dim": 256, "capacity": 65_536}),
        recipe("vit-vqgan-small", 32, 256),
        recipe("raq", 32, 256, model={"channels": 128, "codebook_size": 512, "rates": (16, 2048)}),
    ]


def _tiny() -> list[Case]:
    shape = Shape(64, 9, 5)
    return [
        *(search(shape, dtype) for dtype in (_FP32, _BF16, _FP16)),
        search_two(shape),
        straight_through(shape, _FP32),
        code_statistics(shape, _FP32),
        aggregate(9, 12, 4),
        quantizer(shape),
        *training(_TINY_VQCT),
        *training(_TINY_VQGAN),
        recipe("vqvae", 2, 8, model={"channels": 4, "residual_channels": 2, "code_dim": 4, "codebook_size": 7}),
    ]
