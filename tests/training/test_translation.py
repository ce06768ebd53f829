"""VQCT-VLT in training: a run that translates codes into captions resumes, is saved, measured, and is no other guidance."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from training import checkpoint
from training.__main__ import main
from training.data.batches import PictureDataset
from training.data.sources import open_split
from training.distributed import Ranks
from training.evaluate import Evaluation, evaluate
from training.guidance import Captions, load_guidance
from training.log import read_log
from training.recipes import RECIPES
from training.runs import FinishedRun
from training.tokenizer import train
from training.tokenizer_settings import TranslationSettings, VQGANSettings
from training.translation import measure_translation
from vqkit.language import open_text_encoder
from vqkit.models import from_pretrained
from vqkit.models.vqgan import VQGANConfig
from vqkit.objectives import CaptionTranslation


@pytest.fixture
def translated(tiny, text_model):
    """translated(recipe, **settings): tiny settings with a tiny translation."""

    def make(recipe="vqct-vlt", folder="run", vlt=None, **changes):
        vlt = TranslationSettings(**({"width": 16, "depth": 1, "heads": 2, "text_encoder": str(text_model), "weight": 0.1} | (vlt or {})))
        return tiny(recipe, folder, guidance="translation", vlt=vlt, **changes)

    return make


def test_vqct_vlt_is_vqct_with_translation_and_without_mirroring():
    base, recipe = RECIPES["vqct"], RECIPES["vqct-vlt"]
    assert recipe.settings == dataclasses.replace(base.settings, guidance="translation", flip=False) and recipe.model == "vqct"


@pytest.mark.parametrize("recipe", ["vqct-vlt", "vqvae", "rqvae", "autoencoder"])
def test_any_tokenizer_can_be_translated(translated, recipe):
    folder = train(recipe, translated(recipe, steps=20, log_every=5, lr=4e-3))
    log = read_log(folder / "log.jsonl")
    assert log[-1]["translation"] < log[0]["translation"]
    config = json.loads((folder / "config.json").read_text())
    assert config["guidance"] == "translation" and config["vlt"]["weight"] == 0.1 and "lg" not in config
    from_pretrained(folder / "model")
    found = load_file(checkpoint.latest(folder) / "state.safetensors")
    translation, encoder = load_guidance(folder / "model", torch.device("cpu"))
    assert isinstance(translation, CaptionTranslation) and torch.equal(translation.decoder.token_embeddings, encoder.token_embeddings)
    for name, value in translation.state_dict().items():
        assert torch.equal(value, found[f"average_guidance/{name}"])


def test_stopped_and_resumed_equals_undisturbed(translated):
    settings = dict(steps=9, save_every=2, disc_start=3, accumulation=2)
    undisturbed = train("vqct-vlt", translated("vqct-vlt", "undisturbed", **settings))
    train("vqct-vlt", translated("vqct-vlt", "stopped", **settings | {"steps": 4}))
    resumed = train("vqct-vlt", translated("vqct-vlt", "stopped", **settings))
    one, other = (load_file(checkpoint.latest(folder) / "state.safetensors") for folder in (undisturbed, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (undisturbed / "model/guidance.safetensors").read_bytes() == (resumed / "model/guidance.safetensors").read_bytes()
    with pytest.raises(ValueError, match="vlt.weight: was 0.1, now 0.2"):
        train("vqct-vlt", translated("vqct-vlt", "stopped", vlt={"weight": 0.2}, **settings))
    with pytest.raises(ValueError, match="guidance: was 'translation', now 'lgvq'"):
        train("vqct-vlt", dataclasses.replace(translated("vqct-vlt", "stopped", **settings), guidance="lgvq"))


def test_guidance_cannot_come_or_go_on_resumption(tiny, translated):
    train("vqgan", tiny("vqgan", "plain", steps=2))
    with pytest.raises(ValueError, match="guidance: was None, now 'translation'"):
        train("vqgan", translated("vqgan", "plain", steps=4))
    train("vqgan", translated("vqgan", "guided", steps=2))
    with pytest.raises(ValueError, match="guidance: was 'translation', now None"):
        train("vqgan", tiny("vqgan", "guided", steps=4))


def test_a_run_is_measured_by_hand(translated, pictures, text_model, capsys):
    folder = train("vqct-vlt", translated(steps=3))
    wanted = Evaluation(run=folder, data=str(pictures), device="cpu", workers=0)
    metrics = evaluate(wanted)
    model, encoder = FinishedRun.open(folder).model(), open_text_encoder(str(text_model))
    translation, _ = load_guidance(folder / "model", torch.device("cpu"))
    source = open_split(pictures, "test")
    images, indices = PictureDataset(source, 16).__getitems__([(0, index) for index in range(20)])
    tokens, _ = Captions(source, encoder, 0).draw([(0, index) for index in range(20)], indices.tolist())
    with torch.no_grad():
        maps = model(images / 127.5 - 1).quantized
        text = translation.read(tokens)
        (own, counts), (other, _) = translation.surprises(maps, text), translation.surprises(maps.roll(-10, 0), text)
    assert metrics["caption_nats"] == pytest.approx(own.sum().item() / counts.sum().item(), rel=1e-5)
    assert metrics["caption_nats_other_picture"] == pytest.approx(other.sum().item() / counts.sum().item(), rel=1e-5)
    assert metrics["caption_perplexity"] == pytest.approx(math.exp(metrics["caption_nats"]))
    assert metrics["caption_own_picture"] == pytest.approx((own < other).double().mean().item(), abs=0.06)
    assert metrics["captioned"] == 20 and json.loads((folder / "metrics.json").read_text()) == metrics
    assert "20 captions: " in capsys.readouterr().out
    again = evaluate(dataclasses.replace(wanted, batch_size=7))
    assert again["caption_nats"] == pytest.approx(metrics["caption_nats"], rel=1e-4)
    (pictures / "val" / "metadata.jsonl").unlink()
    assert "captioned" not in evaluate(dataclasses.replace(wanted, split="val"))
    assert "not measured against captions" in capsys.readouterr().out


def test_the_command_line_translates_and_reports(pictures, text_model, tmp_path, capsys):
    run = tmp_path / "run"
    main(["tokenizer", "vqgan", "--data", str(pictures), "--out", str(run), "--resolution", "16", "--steps", "2", "--batch-size", "2", "--device", "cpu",
          "--workers", "0", "--model.channels", "8", "--guidance", "translation", "--vlt.text-encoder", str(text_model), "--vlt.width", "8"])
    said = capsys.readouterr().out
    assert "0.01 x translation into captions (VQCT-VLT, tokens of bert)" in said and "left and right" in said
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert "translation" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_scenes_are_translated_better_from_their_own_codes(write_bert, tmp_path):
    source = open_split("scenes", "train")
    said = sorted({word.strip(".,") for index in range(300) for caption in source.record(index)["captions"] for word in caption.split()})
    model = VQGANConfig(channels=8, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention=False, latent_dim=32, code_dim=16,
                        codebook_size=(64, 64), selections=(1, 1))
    settings = VQGANSettings(data="scenes", out=tmp_path / "run", steps=700, resolution=16, batch_size=16, lr=2e-3, flip=False, model=model,
                             disc_weight=0.0, disc_channels=4, disc_layers=1, workers=0, save_every=1000, device="cpu", guidance="translation",
                             vlt=TranslationSettings(weight=1.0, width=64, depth=1, dropout=0.0,
                                                     text_encoder=str(write_bert(tmp_path / "bert", said, width=32))))
    folder = train("vqgan", settings)
    translation, encoder = load_guidance(folder / "model", torch.device("cpu"))
    found = measure_translation(from_pretrained(folder / "model"), translation, encoder, PictureDataset(open_split("scenes", "val"), 16),
                                Ranks(0, 1, torch.device("cpu")))
    assert found["caption_nats"] < found["caption_nats_other_picture"] - 0.1 and found["caption_own_picture"] > 0.7
