"""Saving and loading: the same bits back, whole files only, and clear words where they do not fit."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqkit.models import Tokenizer, checkpoint, create, from_pretrained, names
from vqkit.models.vqgan import VQGAN
from vqkit.models.vqvae import VQVAE


def outputs(model, images):
    model.eval()
    with torch.no_grad():
        return model(images)


def test_round_trip_gives_the_same_bits(build, kind, images, tmp_path):
    model = build(kind)
    model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected = outputs(model, images)
    model.save_pretrained(tmp_path / "deep" / "model")
    drawn = torch.random.get_rng_state()
    again = from_pretrained(tmp_path / "deep" / "model")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert type(again) is type(model)
    assert not again.training
    assert (again.config, again.words, again.codebook_sizes) == (model.config, model.words, model.codebook_sizes)
    found = outputs(again, images)
    assert torch.equal(found.reconstruction, expected.reconstruction)
    assert torch.equal(found.loss, expected.loss)
    if expected.indices is not None:
        assert torch.equal(found.indices, expected.indices)
    # and it goes on training as the first would
    again.train()(images).reconstruction.mean().backward()
    assert sorted(file.name for file in (tmp_path / "deep" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_the_same_model_is_the_same_bytes(build, tmp_path):
    model = build("vqct")
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
    assert len({(folder / "model.safetensors").read_bytes() for folder in tmp_path.iterdir()}) == 1


def test_dtype_and_memory_format_survive(build, images, tmp_path):
    model = build("vqgan").to(memory_format=torch.channels_last).to(torch.float64)
    expected = outputs(model, images.double())
    model.save_pretrained(tmp_path)
    found = outputs(from_pretrained(tmp_path), images.double())
    assert found.reconstruction.dtype == torch.float64
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)


def test_shared_tensors_are_saved(build, images, tmp_path):
    model = build("vqgan")
    blocks = [model.encoder.middle[0], model.encoder.middle[-1]]
    blocks[1].conv1.weight = blocks[0].conv1.weight
    expected = outputs(model, images)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(from_pretrained(tmp_path), images).reconstruction, expected.reconstruction)


def test_configuration_is_readable_and_enough(build, vocabulary, tmp_path):
    build("vqct").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["name"] == "vqct"
    words = content["config"]["vocabulary"]
    assert words["adjectives"] == vocabulary.adjectives
    assert words["nouns"] == vocabulary.nouns
    assert (words["encoder"], words["edges"]) == ("seeded", 7)
    stored = load_file(tmp_path / "model.safetensors")
    assert any(torch.equal(tensor, vocabulary.vectors) for tensor in stored.values() if tensor.shape == vocabulary.vectors.shape)


def test_saving_again_replaces_whole_files(build, images, tmp_path, monkeypatch):
    model = build("vqgan")
    model.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("vqkit.models.checkpoint.save_file", fail)
    with torch.no_grad():
        model.last_layer.zero_()
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_missing_files(build, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: no config\.json in .*empty; expected what save_pretrained writes"):
        from_pretrained(tmp_path / "empty")
    build("vqgan").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}', '"vqgan"', '{"name": ["vqgan"], "config": {}}', '{"name": "vqgan", "config": [1]}'])
def test_configuration_that_is_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not a model's configuration"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("killed_at", ["model.safetensors", "config.json"])
def test_a_killed_save_leaves_a_whole_model(build, images, tmp_path, monkeypatch, killed_at):
    old, new = build("vqgan"), build("vqct")
    old.save_pretrained(tmp_path)
    replace = checkpoint._replace

    def killed(path, save):
        if path.name == killed_at:
            raise KeyboardInterrupt
        replace(path, save)

    monkeypatch.setattr(checkpoint, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path)
    found, expected = from_pretrained(tmp_path), old if killed_at == "model.safetensors" else new
    assert type(found) is type(expected) and found.config == expected.config
    assert torch.equal(outputs(found, images).reconstruction, outputs(expected, images).reconstruction)


def test_weights_are_enough(build, images, tmp_path):
    model = build("vqct")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert torch.equal(outputs(from_pretrained(tmp_path), images).reconstruction, outputs(model, images).reconstruction)


def test_older_files(build, images, tmp_path):
    model = build("vqgan")
    model.save_pretrained(tmp_path)
    file, text = tmp_path / "model.safetensors", (tmp_path / "config.json").read_bytes()
    for metadata in (None, {"format": "pt", "config_sha256": hashlib.sha256(text).hexdigest()}):
        save_file(load_file(file), file, metadata=metadata)
        assert torch.equal(outputs(from_pretrained(tmp_path), images).reconstruction, outputs(model, images).reconstruction)
    (tmp_path / "config.json").write_bytes(text.replace(b"8", b"16"))
    with pytest.raises(ValueError, match=r"written with another configuration than config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_pretrained(tmp_path)


def test_weights_that_do_not_fit(build, tmp_path):
    build("vqgan").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.conv_in.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["decoder.conv_out.weight"] = torch.zeros(3, 4, 3, 3)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="3 tensors differ") as caught:
        from_pretrained(tmp_path)
    words = ("encoder.conv_in.bias is missing", "extra is unknown", "(3, 4, 3, 3), expected (3, 8, 3, 3)")
    assert [part for part in words if part in str(caught.value)] == list(words)


def test_differences_are_named_in_the_order_of_the_model():
    wanted = {name: torch.zeros(2) for name in "hgfedcba"}
    found = {name: torch.zeros(3) for name in "abcdefgh"}
    assert [problem[0] for problem in checkpoint._differences(wanted, found)] == list("hgfedcba")


def test_damaged_files(build, tmp_path):
    build("vqgan").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        from_pretrained(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="folder: .*not a whole safetensors file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda config: config.update(colour=1), "TypeError: colour: vqct has no such setting"),
        (lambda config: config.pop("vocabulary"), "ValueError: config: no 'vocabulary' in it"),
        (lambda config: config["vocabulary"].pop("encoder"), "KeyError: 'encoder'"),
        (lambda config: config.update(vocabulary=[1]), "TypeError"),
        (lambda config: config.update(channels="8"), "TypeError"),
        (lambda config: config["vocabulary"].update(graph_entries=-1), "RuntimeError"),
    ],
)
def test_damaged_configuration(build, tmp_path, damage, words):
    build("vqct").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    damage(content["config"])
    (tmp_path / "config.json").write_text(json.dumps(content))
    file = tmp_path / "model.safetensors"
    save_file(load_file(file), file)
    with pytest.raises(ValueError, match=f"folder: the configuration in .* is not that of a vqct: {words}"):
        from_pretrained(tmp_path)


def test_a_class_loads_its_own_kind_only(build, tmp_path):
    build("vqgan").save_pretrained(tmp_path)
    assert isinstance(VQGAN.from_pretrained(tmp_path), VQGAN)
    with pytest.raises(ValueError, match="holds a vqgan, expected a vqvae"):
        VQVAE.from_pretrained(tmp_path)


def test_names():
    assert names() == ["adq", "raq", "raq-vqgan", "rqvae", "sgc-vqgan", "v2l", "vit-vqgan", "vqct", "vqgan", "vqvae"]
    with pytest.raises(ValueError, match=r"name: got 'vqgn', expected one of adq, raq, raq-vqgan, rqvae, sgc-vqgan, v2l, vit-vqgan, vqct, vqgan, vqvae; did you mean 'vqgan'\?"):
        create("vqgn")
    with pytest.raises(ValueError, match="name: got 'transformer'"):
        create("transformer")
    assert issubclass(VQGAN, Tokenizer)
