"""A trained RAQ measured at several numbers of codes."""

import json

import pytest
import torch

from training.__main__ import main
from training.data.batches import PictureDataset
from training.data.sources import open_split
from training.evaluate import Evaluation, evaluate
from training.runs import FinishedRun
from training.tokenizer import train
from vqkit.metrics import psnr


@pytest.mark.parametrize("recipe, generator", [("raq", "recurrent"), ("raq", "resize"), ("raq-vqgan", "recurrent")])
def test_each_rate_is_measured_with_its_own_codes(tiny, pictures, recipe, generator, capsys):
    settings = tiny(recipe, steps=3)
    object.__setattr__(settings.model, "generator", generator)
    folder = train(recipe, settings)
    metrics = evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0, rates=(4, 16, 40)))
    assert json.loads((folder / "metrics.json").read_text()) == metrics and list(metrics["rates"]) == ["4", "16", "40"]
    model = FinishedRun.open(folder).model()
    images, _ = PictureDataset(open_split(pictures, "test"), 16).__getitems__([(0, index) for index in range(20)])
    for rate, found in metrics["rates"].items():
        with torch.no_grad():
            output = model(images / 127.5 - 1, rate=int(rate))
        made = output.reconstruction.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        assert found["psnr"] == pytest.approx(psnr(made, images, 255).mean().item(), rel=1e-4)
        assert found["codebook_usage"] == pytest.approx(len(output.indices.unique()) / int(rate))
        assert found["codebook_sizes"] == [int(rate)] and 0 < found["ssim"] <= 1
    # Sixteen are the source's own.
    assert metrics["rates"]["16"]["psnr"] == metrics["psnr"]
    assert f"{recipe} at 40" in capsys.readouterr().out


def test_models_of_one_rate_and_rates_out_of_range(tiny, pictures, capsys):
    folder = train("vqgan", tiny(steps=1))
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--data", str(pictures), "--rates", "16", "32", "--device", "cpu"])
    assert "rates: " in capsys.readouterr().err and not (folder / "metrics.json").exists()
    with pytest.raises(ValueError, match="rates: expected at least 1 each"):
        Evaluation(run=folder, data=str(pictures), rates=(4, 0))
