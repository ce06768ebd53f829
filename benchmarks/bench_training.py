"""One training step of VQGAN and VQCT, with vqkit's quantizer and with a naive one in its place."""

import pytest
import torch

from benchmarks.training_step import Setting, step_call

_SMALL = {"channels": 16, "channel_multipliers": (1, 2, 4, 8), "num_res_blocks": 1, "latent_dim": 128, "code_dim": 64}
_WORDS = 1024
SETTINGS = [
    Setting("vqgan", _SMALL | {"codebook_size": (_WORDS, _WORDS), "selections": (2, 1)}, 32, 64),
    Setting("vqct", _SMALL, 32, 64, words=(_WORDS, _WORDS), edges=13_000, word_dim=384),
]


@pytest.mark.parametrize("contender", ["vqkit", "naive quantizer"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.model)
def test_training_step(measure, device, setting, contender):
    images = torch.rand(32, 3, 64, 64, device=device) * 2 - 1
    group = f"{setting.model} training step, batch 32 at 64x64, 2 x {_WORDS} codes of 64"
    measure(step_call(setting, contender, images), group, contender, rounds=5)
