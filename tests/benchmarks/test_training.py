"""Training steps: the naive model computes what vqkit's does, options change nothing but the speed, and the tables say what was measured."""

import copy
import dataclasses
import json

import pytest
import torch

import vqkit.models
from benchmarks import breakdown, timing, training
from benchmarks.contenders import Unavailable
from benchmarks.naive_recipes import naive_quantizer
from benchmarks.recipe_step import OPTIONS, SMALL, contenders, open_run, step_of
from benchmarks.report import table
from benchmarks.training_results import Loading, Quantisation, StepRow, TrainingResults
from benchmarks.training_step import random_vocabulary
from training.recipes import RECIPES
from vqkit.quantizers import FiniteScalarQuantizer

CPU = torch.device("cpu")
TINY = {"channels": 4, "residual_channels": 2, "code_dim": 4, "codebook_size": 7}


def build(recipe):
    """The recipe's model, of few words."""
    settings = RECIPES[recipe].settings
    config = dataclasses.asdict(settings.model)
    torch.manual_seed(0)
    if hasattr(settings, "words"):
        config["vocabulary"] = random_vocabulary((64, 64), 300, 24)
    return vqkit.models.create(RECIPES[recipe].model, **config).train()


def outcome(model, images):
    """Loss, picture, gradients outside of the quantizer, and of its parameters that both kinds have."""
    torch.manual_seed(1)
    output = model(images)
    (output.reconstruction.square().mean() + output.loss).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and not name.startswith("quantizer")}
    return output, gradients


# Guided recipes have the models of the plain ones.
NAIVE = [name for name in SMALL if "naive quantizer" in contenders(name, "cpu") and not RECIPES[name].settings.guidance]


@pytest.mark.parametrize("recipe, dense", [*((name, False) for name in NAIVE), ("vqct", True)])
def test_the_naive_model_computes_the_same(recipe, dense):
    ours = build(recipe)
    theirs = copy.deepcopy(ours)
    theirs.quantizer = naive_quantizer(theirs.quantizer, dense).train()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    output, gradients = outcome(ours, images)
    naive_output, naive_gradients = outcome(theirs, images)
    torch.testing.assert_close(naive_output.loss, output.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(naive_output.reconstruction, output.reconstruction, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == naive_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(naive_gradients[name], gradient, rtol=1e-2, atol=1e-5, msg=name)
    assert sum(part.counts.sum() for part in output.parts) == naive_output.parts[0].counts.sum()


def test_naive_anchors_move_codes_as_ours():
    ours = build("cvq")
    # Codes as they start lie so near to each other that cdist's rounding chooses between them.
    for part in ours.quantizer.quantizers:
        part.codebook.codes.data.normal_()
    theirs = naive_quantizer(ours.quantizer).train()
    before = ours.quantizer.quantizers[0].codebook.codes.clone()
    latents = torch.randn(2, 128, 4, 4)
    ours.quantizer(latents), theirs(latents)
    for part, naive in zip(ours.quantizer.quantizers, theirs.parts):
        torch.testing.assert_close(naive.codes, part.codebook.codes)
    assert (theirs.parts[0].codes - before).abs().max() > 0.1


def test_a_quantizer_of_no_recipe_is_refused():
    with pytest.raises(TypeError, match="quantizer: expected that of a recipe, got FiniteScalarQuantizer"):
        naive_quantizer(FiniteScalarQuantizer([3, 3]))


def weights(step):
    return torch.cat([parameter.detach().reshape(-1) for parameter in step.run.average.parameters()])


@pytest.mark.parametrize("contender", ["naive quantizer", "fused Adam", "channels-last", "bf16 autocast"])
def test_steps_train_the_same_model(contender):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, theirs = (step_of("vqvae", name, images, model=TINY) for name in ("vqkit", contender))
    before = weights(ours).clone()
    for step in (ours, theirs):
        step()
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-4 if contender != "bf16 autocast" else 1e-3)
    assert (weights(ours) - before).abs().max() > 1e-4 and ours.run.step == theirs.run.step == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_who_is_timed():
    # raq-f4 is small in its pictures only.
    small = {name for name, recipe in RECIPES.items() if recipe.settings.resolution <= 64}
    assert small - {*SMALL} == {"sgc-vqgan", "raq-f4"} and {*SMALL} < small
    assert contenders("vqvae", "cpu") == ["vqkit", "naive quantizer"]
    assert contenders("vqct", "cpu") == ["vqkit", "naive quantizer", "naive quantizer, dense adjacency", "torch.compile(naive quantizer)"]
    assert contenders("vqvae", "cuda") == contenders("vqgan", "cpu") and len(contenders("vqct", "cuda")) == 5
    assert contenders("rqvae", "cpu") == contenders("autoencoder", "cpu") == ["vqkit"]
    assert contenders("rqvae", "cuda") == ["vqkit", "torch.compile(vqkit)"]


@pytest.mark.parametrize("recipe, changes", [("rqvae", {"codebook_size": 9}), ("autoencoder", {})])
def test_a_recipe_without_a_naive_contender_is_measured(recipe, changes, tmp_path, monkeypatch):
    settings = RECIPES[recipe].settings
    model = dataclasses.replace(settings.model, channels=8, latent_dim=8, code_dim=4, **changes)
    settings = dataclasses.replace(settings, model=model, batch_size=2, resolution=16)
    monkeypatch.setitem(RECIPES, recipe, dataclasses.replace(RECIPES[recipe], settings=settings))
    training.main(["--device", "cpu", "--only", recipe, "--no-compile", "--seconds", "0.01", "--out", str(tmp_path)])
    found = json.loads(next(tmp_path.glob("training-*-only.json")).read_text())
    assert [(row["contender"], row["reason"]) for row in found["steps"]] == [("vqkit", None)] and found["loading"]
    # What quantises nothing has no share in the step.
    assert [row["naive"] for row in found["quantisation"]] == ([None] if recipe == "rqvae" else [])


@pytest.mark.parametrize("recipe, computed, changes", [("vqvae", False, {}), ("simvq", True, {}), ("raq", True, {"rates": (3, 9)})])
def test_shares_of_a_quantizer(recipe, computed, changes):
    model = TINY | changes if recipe != "simvq" else {"channels": 8, "codebook_size": (9, 9)}
    step = step_of(recipe, "vqkit", torch.rand(2, 3, 16, 16) * 2 - 1, model=model)
    latents = breakdown.latents_of(step)
    assert latents.shape[1] == step.run.model.to_codes.out_channels and not latents.requires_grad
    times = iter(range(1, 99))
    share = breakdown.measure_share(step, latents, lambda call: (call(), float(next(times)))[1])
    # One codebook of RAQ and each of the two of SimVQ was timed, and nothing where codes are stored.
    assert share.codebook == {"vqvae": 0, "simvq": 1 + 2, "raq": 1}[recipe] and bool(share.codebook) == computed
    assert 0 < share.search < 1 and 0 < share.gradients < 1 and 0 < share.statistics < 1
    assert not any("observe" in vars(module) for module in step.run.model.modules()), "what the profiler saw is undone"


@pytest.mark.parametrize("recipe", ["vqvae", "simvq", "adq"])
def test_a_quantizer_alone_takes_what_autocast_gives_it(recipe):
    step = step_of(recipe, "bf16 autocast", torch.rand(2, 3, 16, 16) * 2 - 1)
    latents = breakdown.latents_of(step)
    assert latents.dtype == torch.bfloat16
    share = breakdown.measure_share(step, latents, lambda call: (call(), 1.0)[1])
    assert share.search > 0 and share.codebook == {"vqvae": 0, "simvq": 2, "adq": 0}[recipe]


def test_calls_take_turns():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    timings = timing.take_turns(calls, CPU, 1e-9)
    assert list(timings) == list("abc") and {t.repeats for t in timings.values()} == {timing.LEAST_ROUNDS}
    assert "".join(seen) == "abcabc" + "abcbcacababcbca" and all(t.lower <= t.median <= t.upper for t in timings.values())


def test_what_a_recipe_needs_and_is_not_there_is_said(monkeypatch):
    def missing(name):
        raise RuntimeError("no such text model")

    monkeypatch.setattr("training.guidance.open_text_encoder", missing)
    with pytest.raises(Unavailable, match="no such text model"):
        open_run("vqgan+lg", CPU)


def test_tables_say_what_was_measured():
    rows = [
        StepRow("vqgan", "vqkit", 32, None, 1.0, 0.2, 0.1, 0.3, 9, 2**20),
        StepRow("vqgan", "naive quantizer", 32, None, 2.0, 0.3, 0.2, 0.4, 9, None),
        StepRow("vqgan", "torch.compile(vqkit)", 32, reason="failed: a | b"),
    ]
    options = [StepRow("vqgan", "vqkit", 32, None, 1.0, 0.2, 0.1, 0.3), StepRow("vqgan", "fused Adam", 32, None, 1.0, 0.16, 0.1, 0.3)]
    share = breakdown.Share(codebook=0.0, search=0.01, gradients=0.002, statistics=0.003)
    results = TrainingResults({"device": "a processor"}, rows, [Quantisation("vqgan", 0.02, 0.1, share)], [Loading("vqgan", 160.0, 0.004)], options)
    lines = results.markdown().splitlines()
    assert "- device: a processor" in lines
    assert "| vqgan | vqkit | 200 ms | 100 ms..300 ms | 5.00 | 160 | 1.0 MiB | 1,000 ms |  |" in lines
    assert "| vqgan | naive quantizer | 300 ms | 200 ms..400 ms | 3.33 | 107 | - | 2,000 ms | 1.50x |" in lines
    assert "| vqgan | 20 ms | 10.0% | 0 ms | 10 ms | 2 ms | 3 ms | 5 ms | 100 ms | 33.3% | 5.0x |" in lines
    assert "| vqgan | 160 | 0.4% |" in lines and "| vqgan | torch.compile(vqkit) | failed: a / b |" in lines
    assert any(line.startswith("| vqgan | fused Adam | 160 ms |") and line.endswith("| 1.25x |") for line in lines)


def test_a_ratio_is_of_what_took_turns():
    rows = [("vqkit", 0.2, {}), ("naive quantizer", 0.6, {"vqkit_beside": 0.3})]
    benchmarks = [{"group": "step", "stats": {"median": median, "min": median, "max": median},
                   "extra_info": {"contender": name, "extra_memory": None} | more} for name, median, more in rows]  # fmt: skip
    text = table({"machine_info": {"python_version": "3", "machine": "m"}, "datetime": "2026-01-02", "benchmarks": benchmarks})
    assert text.splitlines()[-1].endswith("| 2.0x |")


def test_the_command_measures_a_recipe(tmp_path, monkeypatch):
    recipe = RECIPES["vqvae"]
    model = dataclasses.replace(recipe.settings.model, **TINY)
    settings = dataclasses.replace(recipe.settings, model=model, batch_size=2, resolution=16)
    monkeypatch.setitem(RECIPES, "vqvae", dataclasses.replace(recipe, settings=settings))
    training.main(["--device", "cpu", "--only", "vqvae", "--no-compile", "--seconds", "0.01", "--out", str(tmp_path)])
    (data,), (text,) = tmp_path.glob("training-*-only.json"), tmp_path.glob("training-*-only.md")
    found = json.loads(data.read_text())
    assert [(row["contender"], row["reason"]) for row in found["steps"]] == [("vqkit", None), ("naive quantizer", None)]
    assert [row["contender"] for row in found["options"]] == ["vqkit", *(name for name in OPTIONS if "compiled" not in name)]
    assert all(0 < row["lower"] <= row["median"] <= row["upper"] and row["repeats"] >= 5 for row in found["steps"] + found["options"])
    (quantisation,), (loading,) = found["quantisation"], found["loading"]
    assert 0 < quantisation["ours"] < found["steps"][0]["median"] * 3 and quantisation["naive"] > 0 and quantisation["share"]["search"] > 0
    assert loading["images_per_second"] > 0 and 0 <= loading["waiting_for_data"] <= 1
    assert found["about"]["device"] in text.read_text() and "threads" in found["about"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "vqgan-f16"], "--only: expected one of vqvae, vqgan"),
        (["--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["--device", "cpu", "--seconds", "0"], "--seconds: expected more than 0, got 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit):
        training.main(arguments)
    assert message in capsys.readouterr().err
