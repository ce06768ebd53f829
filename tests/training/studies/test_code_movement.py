"""What one selected position moves: its own codes of a learned codebook, all codes of a generated one."""

import pytest
import torch

import vqkit.models
from training.studies.code_movement import codes_moved
from vqkit.language import Vocabulary

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "attention": False, "latent_dim": 8, "code_dim": 4}
PARTS = {"codebook_size": (16, 16), "selections": (2, 1)}


def picture():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def vocabulary():
    edges = torch.stack((torch.arange(16), 16 + torch.arange(16)), 1)
    return Vocabulary([f"a{n}" for n in range(16)], [f"n{n}" for n in range(16)], edges, torch.ones(16, dtype=torch.int64), torch.randn(32, 8), "random")


def test_a_learned_codebook_moves_what_was_selected():
    # Two of one part and one of the other.
    assert codes_moved(vqkit.models.create("vqgan", **SMALL, **PARTS), picture()) == 3 / 32


def test_a_transferred_codebook_moves_together():
    assert codes_moved(vqkit.models.create("vqct", vocabulary=vocabulary(), **SMALL), picture()) == 1.0
    # Without a transfer the codes are the word vectors, which nothing moves.
    fixed = vqkit.models.create("vqct", vocabulary=vocabulary(), **SMALL | {"code_dim": 8}, transfer="none")
    assert codes_moved(fixed, picture()) == 0.0


def test_running_means_move_what_was_selected_though_smoothing_shifts_the_rest():
    model = vqkit.models.create("vqvae", channels=8, residual_channels=4, codebook_size=16, code_dim=8, codebook="ema")
    before = model.double().eval().quantizer.codes.clone()
    assert codes_moved(model, picture()) == 1 / 16
    assert (model.quantizer.codes != before).any(1).sum() > 1


def test_one_linear_map_moves_all():
    assert codes_moved(vqkit.models.create("vqgan", **SMALL, **PARTS, codebook="linear"), picture()) > 0.9


@pytest.mark.parametrize("name, config", [("vqgan", {**SMALL, **PARTS, "quantize": False})])
def test_a_model_without_codes_has_no_answer(name, config):
    assert codes_moved(vqkit.models.create(name, **config), picture()) is None


def test_it_draws_nothing_from_the_caller_and_says_the_same_twice():
    models = [vqkit.models.create("vqct", vocabulary=vocabulary(), **SMALL) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert codes_moved(models[0], picture()) == codes_moved(models[1], picture())
    assert torch.equal(torch.rand(3), expected)
