"""Learning rates as functions of the step, what decays, and runs that resume under them to the same bits."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from training import checkpoint
from training.optimization import create_optimizer, decayed_apart
from training.priors.recipes import PRIOR_RECIPES
from training.recipes import RECIPES, to_json
from training.tokenizer import train
from training.tokenizer_settings import TokenizerSettings
from vqkit.models import create


def settings(**changes):
    return TokenizerSettings(data="", out="", **changes)


def test_the_default_rate_is_constant():
    assert {settings(lr=0.25).rate_at(step) for step in (0, 1, 10_000)} == {0.25}


def test_warm_up_and_cosine():
    chosen = settings(lr=1.0, final_lr=0.2, warmup_steps=4, schedule="cosine", steps=12)
    rates = [chosen.rate_at(step) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[8] == pytest.approx(0.6) and rates[12:] == pytest.approx([0.2] * 4)
    assert rates[6] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert settings(lr=1.0, warmup_steps=2).rate_at(0) == 0.5 and settings(lr=1.0, warmup_steps=2).rate_at(9) == 1.0
    assert settings(lr=1.0, schedule="cosine", schedule_steps=10, steps=99).rate_at(10) == pytest.approx(0.0)


def test_an_exponential_schedule_falls_by_the_same_factor():
    chosen = settings(lr=1.0, final_lr=0.01, warmup_steps=2, schedule="exponential", steps=10)
    rates = [chosen.rate_at(step) for step in range(14)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[10:] == pytest.approx([0.01] * 4)
    assert [after / before for before, after in zip(rates[2:10], rates[3:11])] == pytest.approx([0.01 ** (1 / 8)] * 8)
    with pytest.raises(ValueError, match="final_lr: expected more than 0, where an exponential schedule can end, got 0"):
        settings(schedule="exponential")


def test_the_published_schedules():
    for name in ("vim-base", "vim-large"):
        chosen = PRIOR_RECIPES[name].settings
        assert [chosen.rate_at(step) for step in (4_999, 5_000, 500_000)] == pytest.approx([4.5e-4, 4.5e-4, 1e-5])
    for name in ("vit-vqgan-small", "vit-vqgan-base", "vit-vqgan-large"):
        chosen = RECIPES[name].settings
        assert (chosen.betas, chosen.weight_decay) == ((0.9, 0.99), 1e-4)
        assert [chosen.rate_at(step) for step in (49_999, 50_000, 500_000)] == pytest.approx([1e-4, 1e-4, 5e-5])
    assert RECIPES["raq"].settings.weight_decay > 0 and RECIPES["raq"].settings.rate_at(10**6) == 5e-4
    assert RECIPES["vqgan"].settings.weight_decay == 0 and RECIPES["vqgan"].settings.betas == (0.5, 0.9)


def test_matrices_decay_and_nothing_else():
    model = create("vqgan", channels=8, latent_dim=8, codebook_size=16)
    decayed, others = decayed_apart([model])
    assert {id(p) for p in decayed} | {id(p) for p in others} == {id(p) for p in model.parameters()}
    codes = dict(model.named_parameters())["quantizer.codebook.codes"]
    assert all(p.dim() >= 2 for p in decayed) and any(p is codes for p in others)
    assert all(p.dim() < 2 or p is codes for p in others)
    optimizer = create_optimizer([model], settings(lr=0.5, weight_decay=0.1, betas=(0.0, 0.9)), 0.1)
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in decayed:
        torch.testing.assert_close(parameter.detach(), before[id(parameter)] * (1 - 0.5 * 0.1))
    assert all(torch.equal(parameter, before[id(parameter)]) for parameter in others)


def test_the_rates_reach_both_optimisers_and_a_stopped_run_resumes_to_the_same_bits(tiny):
    chosen = {"schedule": "cosine", "warmup_steps": 3, "final_lr": 1e-4, "betas": (0.8, 0.95), "weight_decay": 0.01, "schedule_steps": 8}
    undisturbed = train("vqgan", tiny("vqgan", "undisturbed", steps=7, save_every=2, disc_start=2, **chosen))
    # Longer than it was asked for at first: the cosine has an end of its own.
    train("vqgan", tiny("vqgan", "stopped", steps=4, save_every=2, disc_start=2, **chosen))
    resumed = train("vqgan", tiny("vqgan", "stopped", steps=7, save_every=2, disc_start=2, **chosen))
    one, other = (load_file(checkpoint.latest(folder) / "state.safetensors") for folder in (undisturbed, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    groups = json.loads((checkpoint.latest(resumed) / "state.json").read_text())["optimizers"]
    expected = tiny("vqgan", steps=7, **chosen).rate_at(6)
    assert [group["lr"] for group in groups["optimizer"] + groups["discriminator_optimizer"]] == pytest.approx([expected] * 3)
    assert [group["weight_decay"] for group in groups["optimizer"] + groups["discriminator_optimizer"]] == [0.01, 0.0, 0]


def test_a_cosine_to_the_last_step_may_not_grow(tiny):
    train("vqgan", tiny(steps=2, schedule="cosine"))
    with pytest.raises(ValueError, match="schedule_steps: was 2, now 4"):
        train("vqgan", tiny(steps=4, schedule="cosine"))
    train("vqgan", tiny(steps=4, schedule="cosine", schedule_steps=2))


def test_runs_that_began_before_schedules_were_there_resume(tiny):
    started = tiny(steps=2, save_every=2)
    undisturbed = train("vqgan", dataclasses.replace(started, out=started.out.with_name("undisturbed"), steps=4))
    train("vqgan", started)
    path = started.out / "config.json"
    config = json.loads(path.read_text())
    for name in ("betas", "weight_decay", "warmup_steps", "schedule", "final_lr", "schedule_steps"):
        del config[name]
    path.write_text(json.dumps(config))
    resumed = train("vqgan", dataclasses.replace(started, steps=4))
    one, other = (load_file(checkpoint.latest(folder) / "state.safetensors") for folder in (undisturbed, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads(path.read_text()) == to_json("vqgan", dataclasses.replace(started, steps=4))


@pytest.mark.parametrize("changes, message", [
    ({"betas": (0.9, 1.0)}, r"betas: .*got \(0.9, 1.0\)"),
    ({"weight_decay": -1.0}, "weight_decay: expected 0 or more"),
    ({"warmup_steps": -1}, "warmup_steps"),
    ({"final_lr": -1.0}, "final_lr"),
    ({"warmup_steps": 5, "schedule_steps": 5}, "schedule_steps: expected more than the 5"),
])
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
