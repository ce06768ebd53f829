"""Metrics of a split: what they mean, and that batches, broken pictures and plain autoencoders do not bend them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.batches import PictureDataset
from training.data.sources import open_split
from training.distributed import Ranks
from training.evaluate import Evaluation, MeanColor, evaluate, table
from training.reconstruction import measure
from training.tokenizer import train

ALONE = Ranks(0, 1, torch.device("cpu"))


class Darker(torch.nn.Module):
    """Ten grey levels below the picture."""

    codebook_sizes = ()

    def forward(self, images):
        return images - 10 / 127.5


def test_known_errors_give_known_numbers(tmp_path):
    (tmp_path / "test").mkdir()
    for number in range(5):
        Image.fromarray(np.random.default_rng(number).integers(20, 230, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "test" / f"{number}.png")
    metrics, usage = measure(Darker(), PictureDataset(open_split(tmp_path, "test"), 16), ALONE, batch_size=2)
    assert usage is None and metrics["images"] == 5
    assert metrics["l1"] == pytest.approx(10 / 255)
    assert metrics["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert 0.5 < metrics["ssim"] < 1


def test_the_mean_colour_is_the_floor(pictures):
    dataset = PictureDataset(open_split(pictures, "test"), 16)
    metrics, _ = measure(MeanColor(), dataset, ALONE)
    values = np.stack([dataset.pixels(index) for index in range(20)]).astype(float)
    mean = np.round(values.mean((1, 2), keepdims=True))
    expected = 10 * np.log10(255**2 / ((values - mean) ** 2).mean((1, 2, 3)))
    assert metrics["psnr"] == pytest.approx(expected.mean(), abs=0.02)


def test_a_run_is_measured_and_written(tiny, pictures, capsys):
    folder = train("vqct", tiny("vqct", steps=3))
    metrics = evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0))
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics.keys() >= {"psnr", "ssim", "l1", "codebook_usage", "perplexity", "images", "recipe", "steps"}
    assert (metrics["recipe"], metrics["steps"], metrics["images"], metrics["codes_per_image"]) == ("vqct", 3, 20, 2 * 2 * 3)
    counts = json.loads((folder / "code_counts.json").read_text())
    assert [sum(part) for part in counts] == [20 * 4 * 2, 20 * 4]
    used = [sum(count > 0 for count in part) / len(part) for part in counts]
    assert metrics["codebook_usage_parts"] == pytest.approx(used)
    assert metrics["codebook_usage"] == pytest.approx(np.mean(used))
    printed = capsys.readouterr().out
    assert f"{metrics['psnr']:.2f}" in printed and "codes used" in printed
    again = evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0, batch_size=7))
    # Convolutions of another batch round differently, and a value between two grey levels may then go to the other: at most a few do.
    grey_levels = 4 / 255 / (20 * 3 * 16 * 16)
    assert again["l1"] == pytest.approx(metrics["l1"], abs=grey_levels)
    # What these can change in a mean of squares of this size.
    assert again["psnr"] == pytest.approx(metrics["psnr"], rel=1e-5) and again["ssim"] == pytest.approx(metrics["ssim"], rel=1e-5)


def test_an_autoencoder_has_no_codes_to_report(tiny, pictures):
    folder = train("autoencoder", tiny("autoencoder", steps=3))
    metrics = evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0))
    assert metrics["codebook_usage"] == metrics["perplexity"] == 0 and metrics["codes_per_image"] == 0
    assert table([metrics]).splitlines()[1].split()[-2:] == ["-", "-"]


def test_what_cannot_be_evaluated_is_named(tiny, pictures, tmp_path):
    with pytest.raises(ValueError, match="is not a run: expected .*config.json"):
        evaluate(Evaluation(run=tmp_path, data=str(pictures)))
    folder = train("vqgan", tiny(steps=3))
    with pytest.raises(ValueError, match="resolution: expected a multiple of 8, .* got 12"):
        evaluate(Evaluation(run=folder, data=str(pictures), resolution=12))
    for picture in (pictures / "val").glob("*.png"):
        picture.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 20 pictures"):
        evaluate(Evaluation(run=folder, data=str(pictures), split="val", device="cpu", workers=0))
