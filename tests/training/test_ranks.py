"""Two ranks under torchrun give the numbers of one."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from training import checkpoint
from training.distributed import choose_precision
from training.tokenizer import train
from training.tokenizer_settings import LGVQSettings

_TRAIN = """
import dataclasses, json, pathlib, sys
import torch
from training.recipes import RECIPES
from training.tokenizer import train
torch.set_num_threads(1)
recipe, changes = sys.argv[1], json.loads(sys.argv[2])
base = RECIPES[recipe].settings
model = dataclasses.replace(base.model, **changes.pop("model"))
changes["lg"] = dataclasses.replace(base.lg, **changes["lg"])
changes["out"] = pathlib.Path(changes["out"])
train(recipe, dataclasses.replace(base, model=model, **changes))
# A thread of the process group that outlives it can abort the process while Python shuts down.
threads = [task.joinpath("comm").read_text().strip() for task in pathlib.Path("/proc/self/task").glob("*")]
assert not [name for name in threads if "gloo" in name], threads
"""


def on_two_ranks(launch, port, *command):
    process = launch("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), *command)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vqgan", "vqct", "vqvae", "vqct+lg"])
def test_two_ranks_train_as_one_with_twice_the_batch(tiny, launch, tmp_path, recipe, unused_port, text_model):
    # VQCT with its dropout, VQ-VAE with its moving averages: one codebook on all ranks. Guided, the captions of both are one batch; the
    # decoder's dropout is off, which every rank draws for its own pictures.
    guided = {"lg": LGVQSettings(alpha=0.1, beta=0.1, gamma=0.1, dropout=0.0, width=8, depth=1, text_encoder=str(text_model))}
    common = dict(steps=4, save_every=4, lr=1e-4, disc_weight=0.0) | (guided if recipe.endswith("+lg") else {})
    one = load_file(checkpoint.latest(train(recipe, tiny(recipe, "one", batch_size=8, **common))) / "state.safetensors")
    settings = tiny(recipe, "two", batch_size=4, **common)
    changes = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    for part in ("model", "lg"):
        changes[part] = dataclasses.asdict(changes[part])
    script = tmp_path / "train.py"
    script.write_text(_TRAIN)
    on_two_ranks(launch, unused_port, script, recipe, json.dumps(changes, default=str))
    two = load_file(checkpoint.latest(settings.out) / "state.safetensors")
    assert torch.equal(two["rng.cpu.0"], two["rng.cpu.1"])
    half = load_file(checkpoint.latest(train(recipe, tiny(recipe, "half", batch_size=4, **common))) / "state.safetensors")
    names = [name for name, value in one.items() if name.startswith(("model/", "guidance/")) and value.is_floating_point()]
    distance = {key: sum((one[name] - other[name]).double().square().sum() for name in names).sqrt() for key, other in (("two", two), ("half", half))}
    # One rank on half of the pictures goes elsewhere; two ranks go the same way but for rounding, which Adam's sign-like steps magnify.
    assert distance["two"] < 0.05 * distance["half"]


@pytest.mark.slow
def test_two_ranks_evaluate_as_one(tiny, launch, unused_port, pictures, text_model):
    # 20 pictures in batches of 3: seven batches, of which the ranks get four and three.
    (pictures / "test" / "05.png").write_bytes(b"broken")
    guide = LGVQSettings(width=8, depth=1, text_encoder=str(text_model))
    folder = train("vqct+lg", tiny("vqct+lg", steps=4, lg=guide))
    command = ("evaluate", folder, "--data", pictures, "--split", "test", "--batch-size", "3", "--device", "cpu")
    found = []
    for ranks in (1, 2):
        if ranks == 1:
            process = launch("-m", "training", *command)
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
        else:
            on_two_ranks(launch, unused_port, "-m", "training", *command)
        found.append(json.loads((folder / "metrics.json").read_text()))
        (folder / "metrics.json").unlink()
    assert found[0]["images"] == found[1]["images"] == 19 and found[0]["skipped"] == 1
    for name in ("psnr", "ssim", "l1", "codebook_usage", "perplexity", "captioned", "masked_word_recall@1", "image_to_text_recall@5"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9), name
    assert found[0]["word_code_similarity_mse"] == pytest.approx(found[1]["word_code_similarity_mse"], rel=1e-5)


@pytest.mark.parametrize("amx, avx512, expected", [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)])
def test_the_automatic_precision_is_that_of_the_processor_s_units(monkeypatch, amx, avx512, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == expected
    assert (choose_precision("fp32", cpu), choose_precision("bf16", cpu)) == (torch.float32, torch.bfloat16)
