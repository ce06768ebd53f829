"""Image completion: the upper half stays as it was, and the lower one fits it."""

import pytest
import torch

from training.priors.codes import PictureCodes, PictureFormat
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.tasks.completion import GREY, Completion
from training.tasks.distribution import generated, real_pictures
from training.tasks.task import IMAGE, Examples, Judged, Rows
from training.tasks.unconditional import Unconditional
from vqkit.metrics import psnr, ssim
from vqkit.models import ABSENT, Sampling, create_prior


@pytest.mark.parametrize("height, width, tokens, pixels", [(8, 8, 32, 16), (4, 6, 12, 16), (3, 4, 4, 10), (2, 1, 1, 16)])
def test_the_given_half_is_the_rows_above_the_middle(height, width, tokens, pixels):
    task = Completion(PictureFormat(32, "crop", height, width, (8,), (1,)), {})
    assert (task.given_tokens, task.given_pixels) == (tokens, pixels)
    codes = torch.arange(height * width).remainder(8).expand(2, -1).clone()
    upper = task.upper({IMAGE: codes})[IMAGE]
    assert torch.equal(upper[:, :tokens], codes[:, :tokens]) and (upper[:, tokens:] == ABSENT).all() and (codes >= 0).all()


def test_one_row_of_codes_has_no_halves():
    with pytest.raises(ValueError, match="completion needs at least two rows of codes, got 1 of 8"):
        _ = Completion(PictureFormat(32, "crop", 1, 8, (8,), (1,)), {}).segments


def test_its_sequences_are_those_of_unconditional():
    pictures = PictureFormat(32, "crop", 4, 4, (8, 5), (2, 1))
    assert Completion(pictures, {}).segments == Unconditional(pictures, {}).segments


def test_what_the_lower_half_can_be_given_the_upper_sums_to_one():
    torch.manual_seed(0)
    task = Completion(PictureFormat(16, "crop", 2, 1, (7,), (1,)), {})
    prior = create_prior("prior", task.segments, depth=2, width=16, heads=2, dropout=0.0).eval()
    for parameter in prior.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    judged = Judged(prior, None, None, None, Sampling())
    found = task._lower_given_upper(judged, {IMAGE: pairs}).exp().view(7, 7)
    assert torch.allclose(found.sum(1), torch.ones(7, dtype=torch.float64), atol=1e-5) and found.std() > 0.01


def test_the_likelihood_and_the_matching_of_halves():
    """Against sums over the last positions, and a prior that knows nothing."""
    torch.manual_seed(0)
    task = Completion(PictureFormat(16, "crop", 4, 2, (5, 6), (2, 1)), {})
    prior = create_prior("prior", task.segments, depth=4, width=16, heads=2, dropout=0.0).eval()
    codes = torch.randint(0, 5, (6, 8, 3), dtype=torch.int32)
    examples = Examples(Rows(torch.arange(6)), PictureCodes(codes, torch.ones(6, dtype=torch.bool)))
    judged = Judged(prior, None, examples, None, Sampling(), batch_size=4)
    found = task._likelihood(judged)
    with torch.no_grad():
        losses = prior._cross_entropies({IMAGE: codes.long()})[IMAGE]
        mixed = torch.cat((codes.roll(-3, 0)[:, :4], codes[:, 4:]), 1).long()
        others = prior._cross_entropies({IMAGE: mixed})[IMAGE]
    assert found["completed_nats_per_token"] == pytest.approx(losses[:, 4:].mean().item(), rel=1e-5)
    assert found["matching"] == (losses[:, 4:].sum((1, 2)) < others[:, 4:].sum((1, 2))).double().mean().item()
    for parameter in prior.parameters():
        parameter.data.zero_()
    assert task._likelihood(judged)["matching"] == 0.5


def test_given_codes_are_kept_and_halves_are_compared_in_pixels(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("completion", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=6, batch_size=6)), run.task()
    tokens = judged.examples.batch(torch.arange(6))
    drawn = judged.draw(task.upper(tokens))[IMAGE]
    assert torch.equal(drawn[:, :32], tokens[IMAGE][:, :32]) and not torch.equal(drawn[:, 32:], tokens[IMAGE][:, 32:])
    found = task.measure(judged)
    real = real_pictures(judged, task.pictures, torch.arange(6))
    (_, completed), = generated(judged, task.pictures, task.upper)
    assert found["psnr"] == pytest.approx(psnr(completed[:, :, 16:], real[:, :, 16:], 255).mean().item())
    assert found["ssim_foreign"] == pytest.approx(ssim(completed[:, :, 16:], real.roll(-3, 0)[:, :, 16:], 255).mean().item())
    flat = real[:, :, :16].double().mean((2, 3), keepdim=True).expand(-1, -1, 16, 32)
    assert found["psnr_mean_color"] == pytest.approx(psnr(flat, real[:, :, 16:], 255).mean().item())


def test_panels_show_the_given_half_the_completed_picture_and_the_real_one(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("completion", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=4)), run.task()
    for panel, real in zip(task.panels(judged, [], 3), real_pictures(judged, task.pictures, torch.arange(3)), strict=True):
        given, completed, shown = panel.pictures
        assert torch.equal(shown, real) and torch.equal(given[:, :16], real[:, :16]) and (given[:, 16:] == GREY).all()
        assert completed.shape == real.shape and completed.dtype == torch.uint8
    with pytest.raises(ValueError, match="prompt: completion takes pictures of the data and no text, got 'more'"):
        task.panels(judged, ["more"], 1)


def test_a_prior_that_has_only_bounds_gets_no_difference_of_them(prior_of, untrained_run):
    metrics = evaluate_prior(PriorEvaluation(prior_of("completion", untrained_run, recipe="masked"), pictures=4))
    assert not {"completed_nats_per_token", "matching"} & metrics.keys() and metrics["psnr"] > 0
