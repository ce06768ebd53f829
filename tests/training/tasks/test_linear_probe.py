"""The linear probe reads the right block, fits to training and judges on the split."""

import pytest
import torch

from training.data.sources import SceneSource
from training.linear_classifier import LinearClassifier
from training.priors.codes import PictureCodes
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.tasks.linear_probe import code_frequencies, middle_block, pooled_states
from training.tasks.task import IMAGE, Examples, Rows
from vqkit.models import Segment


def test_the_block_is_that_of_the_paper():
    assert middle_block(36) == 15 and middle_block(24) == 10
    assert [middle_block(depth) for depth in (1, 2, 4, 8, 12)] == [1, 1, 2, 3, 5]


def test_states_are_means_over_a_pictures_positions(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("linear-probe", untrained_run, depth=4))
    judged = judge(run, PriorEvaluation(run.folder, pictures=5, batch_size=2))
    tokens = judged.examples.batch(torch.arange(5))
    found = pooled_states(judged, judged.examples, 2)
    assert torch.allclose(found, judged.prior.states(tokens, 2, IMAGE).mean(1), atol=1e-6) and found.shape == (5, 64)
    # the pictures' last codes count too
    changed = {IMAGE: tokens[IMAGE].clone()}
    changed[IMAGE][:, -1] = (changed[IMAGE][:, -1] + 1) % 128
    assert not torch.allclose(judged.prior.states(changed, 2, IMAGE).mean(1), found, atol=1e-6)


def test_frequencies_of_codes_are_counted_part_by_part():
    codes = torch.tensor([[[0, 1, 2], [1, 1, 0]], [[0, 0, 1], [0, 1, 1]]], dtype=torch.int32)
    examples = Examples(Rows(torch.tensor([1, 0])), PictureCodes(codes, torch.ones(2, dtype=torch.bool)))
    found = code_frequencies(examples, Segment(IMAGE, 2, (2, 3), (2, 1), predicted=True))
    assert (found * 2).tolist() == [[3, 1, 0, 2, 0], [1, 3, 1, 0, 1]]


def test_it_is_fitted_to_training_and_judged_on_the_split(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("linear-probe", untrained_run, max_pictures=200))
    task, judged = run.task(), judge(run, PriorEvaluation(run.folder, pictures=50))
    training = judged.training()
    labels = {split: [SceneSource(split).record(index)["label"] for index in range(count)] for split, count in (("train", 200), ("test", 50))}
    classes = task.learned["classes"]
    numbers = {split: torch.tensor([classes.index(name) for name in names]) for split, names in labels.items()}
    assert [about["class"] for about in training.rows.about] == numbers["train"].tolist()
    found = task.measure(judged)
    classifier = LinearClassifier.fit(pooled_states(judged, training, 1), numbers["train"], len(classes))
    expected = (classifier.predict(pooled_states(judged, judged.examples, 1)) == numbers["test"]).double().mean().item()
    most = max(classes, key=labels["train"].count)
    assert found["top1"] == expected and found["majority"] == labels["test"].count(most) / 50 and found["block"] == 1
    segment = task.segments[0]
    control = LinearClassifier.fit(code_frequencies(training, segment), numbers["train"], len(classes))
    told = control.predict(code_frequencies(judged.examples, segment))
    assert found["top1_codes"] == (told == numbers["test"]).double().mean().item()


def test_what_it_refuses(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("linear-probe", untrained_run, recipe="masked"))
    with pytest.raises(ValueError, match="linear-probe reads the states of an autoregressive prior, got a masked-prior"):
        evaluate_prior(PriorEvaluation(run.folder, pictures=4))
    with pytest.raises(ValueError, match="linear-probe tells classes and makes nothing to look at"):
        run.task().panels(judge(run, PriorEvaluation(run.folder, pictures=4)), [], 1)
