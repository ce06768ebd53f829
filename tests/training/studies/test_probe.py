"""The probe asks every tokenizer the same, leaves it as it was, and finds language where the codes hold it."""

import json

import pytest
import torch
from torch import nn

import vqkit.models
from training.data.sources import open_split
from training.studies.probe import LanguageProbe, NoTextModel

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "attention": False, "latent_dim": 8, "code_dim": 4, "codebook_size": 16}


def probe(pictures, text_model, steps):
    train, test = (open_split(str(pictures), split) for split in ("train", "test"))
    return LanguageProbe(train, test, 16, "crop", steps, torch.device("cpu"), str(text_model))


def test_it_says_the_same_twice_and_changes_nothing(pictures, text_model):
    model = vqkit.models.create("vqgan", **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = probe(pictures, text_model, 3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = asked.measure(model)
    assert torch.equal(torch.rand(3), expected)
    # Of the same probe, of which pictures and texts are kept, and of a new one.
    assert asked.measure(model) == found and probe(pictures, text_model, 3).measure(model) == found
    assert {"probe_word_code_similarity_mse", "probe_masked_word_recall@1", "probe_image_to_text_recall@10"} <= found.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert probe(pictures, text_model, 8).measure(model) != found


class Bright(nn.Module):
    """A tokenizer whose map is the mean brightness of the picture, or nothing."""

    def __init__(self, blind: bool):
        super().__init__()
        self.blind = blind

    def forward(self, images):
        brightness = images.mean((1, 2, 3)) * (0.0 if self.blind else 1.0)
        quantized = torch.stack((brightness, 1 - brightness), 1)[:, :, None, None].expand(-1, -1, 2, 2)
        return type("Output", (), {"quantized": quantized})


def test_it_finds_words_that_the_codes_tell(tmp_path, write_bert):
    from PIL import Image

    for split in ("train", "test"):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(32):
            Image.new("RGB", (16, 16), (255,) * 3 if number % 2 else (0,) * 3).save(folder / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "captions": ["white"] if number % 2 else ["black"]}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    asked = probe(tmp_path / "pictures", write_bert(tmp_path / "bert", ["white", "black"]), 40)
    seeing, blind = (asked.measure(Bright(blind))["probe_masked_word_recall@1"] for blind in (False, True))
    assert seeing == 1.0 and blind == 0.5


def test_a_text_model_that_is_not_there_and_no_steps_are_named(pictures, text_model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoTextModel, match="text_encoder: .*empty"):
        probe(pictures, tmp_path / "empty", 2).measure(vqkit.models.create("vqgan", **SMALL))
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        probe(pictures, text_model, 0)
