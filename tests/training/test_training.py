"""The training loop: learns, resumes to the same bits, stops when asked, and refuses what does not fit."""

import dataclasses
import json
import logging
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from training import checkpoint
from training.log import RunLog, read_log
from training.tokenizer import train

_RUN_SETTINGS = """
import dataclasses, json, pathlib, sys
from training.recipes import RECIPES
from training.tokenizer import train
import torch
torch.set_num_threads(1)
recipe, changes = sys.argv[1], json.loads(sys.argv[2])
base = RECIPES[recipe].settings
model = dataclasses.replace(base.model, **changes.pop("model"))
changes["lg"] = dataclasses.replace(base.lg, **changes["lg"])
changes["out"] = pathlib.Path(changes["out"])
train(recipe, dataclasses.replace(base, model=model, **changes))
"""


def arguments(recipe, settings):
    changes = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    for part in ("model", "lg"):
        changes[part] = dataclasses.asdict(changes[part])
    return "-c", _RUN_SETTINGS, recipe, json.dumps(changes, default=str)


def state(folder):
    return load_file(checkpoint.latest(folder) / "state.safetensors")


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def wait_for_step(folder, step, process):
    until = time.monotonic() + 120
    while (found := checkpoint.latest(folder)) is None or checkpoint.step_of(found) < step:
        assert process.poll() is None and time.monotonic() < until, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.parametrize("recipe", ["vqvae", "vqgan", "vqct", "autoencoder"])
def test_a_recipe_learns_and_writes_its_run(tiny, recipe):
    settings = tiny(recipe, steps=40, log_every=5, lr=4e-3)
    folder = train(recipe, settings)
    log = read_log(folder / "log.jsonl")
    pixel = settings.pixel_loss
    assert [line["step"] for line in log] == list(range(5, 41, 5))
    assert log[-1][pixel] < 0.96 * log[0][pixel]
    assert all(line["images_per_second"] > 0 and 0 <= line["waiting_for_data"] < 1 for line in log)
    if recipe != "autoencoder":
        assert 0 < log[-1]["codebook_usage"] <= 1
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000039", "step-00000040"]
    assert json.loads((folder / "config.json").read_text())["recipe"] == recipe
    assert (folder / "model" / "model.safetensors").is_file()


def test_stopped_and_resumed_equals_undisturbed(tiny):
    settings = dict(steps=9, save_every=2, disc_start=3, accumulation=2)
    undisturbed = train("vqct", tiny("vqct", "undisturbed", **settings))
    stopped = tiny("vqct", "stopped", **settings | {"steps": 4})
    train("vqct", stopped)
    resumed = train("vqct", tiny("vqct", "stopped", **settings))
    assert_same_bits(state(undisturbed), state(resumed))
    assert_same_bits(load_file(undisturbed / "model" / "model.safetensors"), load_file(resumed / "model" / "model.safetensors"))


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_bits(tiny, launch):
    settings = dict(steps=60, save_every=5, disc_start=12, workers=1)
    undisturbed = train("vqct", tiny("vqct", "undisturbed", **settings))
    wanted = tiny("vqct", "killed", **settings)
    process = launch(*arguments("vqct", wanted))
    wait_for_step(wanted.out, 15, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.step_of(checkpoint.latest(wanted.out)) < 60
    again = launch(*arguments("vqct", wanted))
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "goes on from step" in said, said
    assert_same_bits(state(undisturbed), state(wanted.out))
    steps = [line["step"] for line in read_log(wanted.out / "log.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(tiny, launch, number):
    wanted = tiny(steps=100_000, save_every=100_000, log_every=1, workers=1)
    process = launch(*arguments("vqgan", wanted), start_new_session=True)
    until = time.monotonic() + 120
    while not read_log(wanted.out / "log.jsonl"):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    # A terminal's Ctrl-C goes to the workers too.
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert f"{number.name}: saved at step" in said and "Traceback" not in said
    saved = checkpoint.step_of(checkpoint.latest(wanted.out))
    assert read_log(wanted.out / "log.jsonl")[-1]["step"] == saved


def test_the_discriminator_joins_at_its_step(tiny):
    log = read_log(train("vqgan", tiny(steps=6, disc_start=4, log_every=1)) / "log.jsonl")
    assert ["discriminator" in line for line in log] == [False] * 4 + [True] * 2
    assert all(line["adaptive_weight"] > 0 for line in log[4:])


@pytest.mark.parametrize("discriminator, own", [("patch", "hinge"), ("style", "non_saturating")])
def test_the_adversarial_loss_is_the_discriminators_own_unless_asked(tiny, discriminator, own):
    (other,) = {"hinge", "non_saturating"} - {own}

    def first(**settings):
        changes = {"discriminator": discriminator, "disc_start": 0, "steps": 1, "log_every": 1} | settings
        return read_log(train("vqgan", tiny(folder=settings.get("disc_loss", "default"), **changes)) / "log.jsonl")[0]

    default, same, changed = first(), first(disc_loss=own), first(disc_loss=other)
    assert (default["generator"], default["discriminator"]) == (same["generator"], same["discriminator"])
    assert changed["generator"] != default["generator"] and changed["discriminator"] != default["discriminator"]
    # softplus is positive; the hinge's is minus the mean logit, here of the same fresh networks.
    non_saturating = default if own == "non_saturating" else changed
    assert non_saturating["generator"] > 0 and default["l1"] == changed["l1"]


def test_the_average_follows_the_weights(tiny):
    kept = state(train("vqgan", tiny(ema_decay=0.0)))
    for name in (name for name in kept if name.startswith("model/")):
        assert torch.equal(kept[name], kept[name.replace("model/", "average/", 1)]), name
    averaged = state(train("vqgan", tiny(folder="averaged")))
    name = "encoder.conv_in.weight"
    assert torch.equal(averaged[f"model/{name}"], kept[f"model/{name}"])
    difference = (averaged[f"average/{name}"] - averaged[f"model/{name}"]).norm()
    assert 0 < difference < 0.1 * averaged[f"model/{name}"].norm()


def test_accumulated_passes_are_one_batch(tiny):
    # Without a quantizer: its codes are found anew in each pass, from the same weights, but usage differs by rounding only here.
    together = state(train("autoencoder", tiny("autoencoder", "together", batch_size=8, steps=3)))
    apart = state(train("autoencoder", tiny("autoencoder", "apart", batch_size=4, accumulation=2, steps=3)))
    for name in (name for name in together if name.startswith("model/")):
        torch.testing.assert_close(together[name], apart[name], rtol=1e-3, atol=2e-4)


def test_a_changed_setting_is_refused_by_name(tiny):
    train("vqgan", tiny(steps=3))
    with pytest.raises(ValueError, match=r"other settings; lr: was 0.001, now 0.002"):
        train("vqgan", tiny(steps=3, lr=2e-3))
    with pytest.raises(ValueError, match=r"recipe: was 'vqgan', now 'autoencoder'"):
        train("autoencoder", tiny("autoencoder", steps=3))
    with pytest.raises(ValueError, match="steps: .* has 3 steps already, now 2"):
        train("vqgan", tiny(steps=2))


def test_a_finished_run_is_left_alone(tiny, capsys):
    folder = train("vqgan", tiny(steps=3))
    before = (checkpoint.latest(folder) / "state.safetensors").read_bytes()
    train("vqgan", tiny(steps=3, workers=1, log_every=1))
    assert "3 steps are done already" in capsys.readouterr().out
    assert (checkpoint.latest(folder) / "state.safetensors").read_bytes() == before


def test_a_broken_picture_does_not_stop_training(tiny, pictures, caplog, capsys):
    (pictures / "train" / "07.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "training"):
        train("vqgan", tiny(steps=6))
    assert any("07.png" in message for message in caplog.messages)
    assert "skipped, not readable" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="resolution: expected a multiple of 8, .* got 20"):
        train("vqgan", tiny(resolution=20))
    with pytest.raises(ValueError, match="device: expected auto, cpu or cuda, got 'gpu'"):
        train("vqgan", tiny(folder="other", device="gpu"))
    with pytest.raises(ValueError, match="no split at all"):
        train("vqgan", tiny(folder="other", data=str(tmp_path)))
    with pytest.raises(ValueError, match="disc_layers: 3 layers need pictures of at least 24"):
        train("vqgan", tiny(folder="third", disc_start=0, disc_layers=3))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        tiny(batch_size=0)


def test_a_loss_that_is_no_number_ends_the_run(tiny):
    with pytest.raises(FloatingPointError, match="is not a number at step"):
        train("vqgan", tiny(lr=1e30, log_every=1, steps=20))


def test_the_log_is_cut_at_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "l1": 0.5}) + "\n" for step in (10, 20, 30)) + '{"step": 40, "l')
    log = RunLog(path, 20)
    log.write({"step": 21, "l1": 0.4})
    log.close()
    assert [line["step"] for line in read_log(path)] == [10, 20, 21]


def test_an_unfinished_checkpoint_is_not_taken(tiny):
    folder = train("vqgan", tiny(steps=3))
    unfinished = folder / "checkpoints" / ".unfinished-6"
    unfinished.mkdir()
    (unfinished / "state.json").write_text("{}")
    train("vqgan", tiny(steps=6))
    assert checkpoint.step_of(checkpoint.latest(folder)) == 6 and not unfinished.exists()


def test_a_refused_setting_leaves_the_folder_free(tiny):
    with pytest.raises(ValueError, match="resolution"):
        train("vqct", tiny("vqct", resolution=20))
    train("vqct", tiny("vqct", steps=3))
