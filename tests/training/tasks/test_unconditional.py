"""Unconditional generation, and the two tasks that read a prior of it: completion and the linear probe."""

import json

import pytest
import torch

from training.priors.codes import read_codes
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.priors.train import CODES
from training.tasks.distribution import generated, nothing
from training.tasks.task import IMAGE


def test_panels_are_drawn_from_nothing_and_take_no_text(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("unconditional", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=2)), run.task()
    panels = task.panels(judged, [], 5)
    (_, drawn), = generated(judged, task.pictures, nothing)
    assert len(panels) == 5 and all(panel.pictures[0].shape == (3, 32, 32) for panel in panels) and drawn.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="prompt: unconditional generation takes no text, got 'a cat'"):
        task.panels(judged, ["a cat"], 1)


def test_another_task_is_measured_only_where_the_sequences_are_the_same(prior_of, untrained_run):
    folder = prior_of("unconditional", untrained_run, max_pictures=64)
    with pytest.raises(ValueError, match=r"task: expected one with the sequences of unconditional \(image\), got class-conditional \(class, image\)"):
        evaluate_prior(PriorEvaluation(folder, task="class-conditional"))
    own = evaluate_prior(PriorEvaluation(folder, pictures=8))
    probed = evaluate_prior(PriorEvaluation(folder, pictures=8, task="linear-probe"))
    assert (own["task"], probed["task"]) == ("unconditional", "linear-probe") and own["image_nats_per_token"] == probed["image_nats_per_token"]
    assert json.loads((folder / "metrics.json").read_text()) == own
    assert json.loads((folder / "metrics.linear-probe.json").read_text()) == probed


def test_a_network_of_features_names_the_distances(prior_of, untrained_run, monkeypatch, tmp_path):
    """With a network that is trained for two steps: what counts is what the numbers are called."""
    from training.feature_net import feature_net
    from training.priors import evaluate as module

    monkeypatch.setattr(module, "feature_net", lambda *place, fit: feature_net(*place, fit=fit, pictures=64, steps=2))
    folder = prior_of("unconditional", untrained_run)
    first, second = (evaluate_prior(PriorEvaluation(folder, pictures=16, feature_net=tmp_path / "nets")) for _ in range(2))
    assert first == second and first["fd_net"] > 0 and first["features"].startswith("net-")
    assert not {"fid", "kid", "inception_score"} & first.keys()
    with pytest.raises(FileNotFoundError, match="no file at .*expected the Inception weights of FID"):
        evaluate_prior(PriorEvaluation(folder, pictures=16, inception_weights=tmp_path / "inception.pth"))


@pytest.mark.slow
def test_a_prior_of_pictures_knows_their_distribution_their_halves_and_their_class(prior_of, tokenizer_run):
    folder = prior_of("unconditional", tokenizer_run, 250, max_pictures=1024)
    run = FinishedPrior.open(folder)
    judged = judge(run, PriorEvaluation(folder, pictures=128))

    # what is reached at best by the frequencies of codes alone, even by those of the very pictures that are judged
    codes = judged.examples.batch(torch.arange(128))[IMAGE]
    shares = codes.flatten().bincount().double() / codes.numel()
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum().item()
    assert evaluate_prior(PriorEvaluation(folder, pictures=128))["image_nats_per_token"] < entropy - 0.5
    assert len(read_codes(folder / CODES).codes) == 1024

    halves = evaluate_prior(PriorEvaluation(folder, pictures=128, task="completion"))
    assert halves["matching"] > 0.8 and halves["completed_nats_per_token"] < entropy - 0.5
    # the halves of others are as near as chance comes
    assert halves["psnr"] > halves["psnr_foreign"] + 2 and halves["ssim"] > halves["ssim_foreign"]
    assert halves["psnr_reconstructed"] > halves["psnr"] + 2

    probed = evaluate_prior(PriorEvaluation(folder, pictures=256, task="linear-probe"))
    # Backgrounds are told by the codes alone: the bar is that the states keep what those say, not that they add much to it.
    assert probed["majority"] < 0.25 and probed["top1"] > 0.75 and probed["top1"] > probed["top1_codes"] - 0.03
