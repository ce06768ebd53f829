"""Text to image: every caption is an example, and pictures show what their captions say."""

import pytest
import torch

from training.data.batches import to_float
from training.data.scenes import BACKGROUNDS
from training.data.sources import SceneSource
from training.linear_classifier import LinearClassifier
from training.priors.drawing import Drawing
from training.priors.evaluate import PriorEvaluation, evaluate_prior, judge
from training.priors.runs import FinishedPrior
from training.tasks.captions import TEXT
from training.tasks.distribution import generated, one_each, real_pictures


def test_every_caption_is_an_example_and_panels_show_one_a_picture(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("text-to-image", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=3)), run.task()
    said = [SceneSource("test").record(index)["captions"] for index in range(3)]
    rows = judged.examples.rows
    assert rows.pictures.tolist() == [number for number, captions in enumerate(said) for _ in captions]
    assert [about["caption"] for about in rows.about] == sum(said, [])
    assert [panel.text for panel in task.panels(judged, [], 5)] == [captions[0] for captions in said]


def test_panels_of_prompts_are_under_their_texts(prior_of, untrained_run):
    run = FinishedPrior.open(prior_of("text-to-image", untrained_run))
    judged, task = judge(run, PriorEvaluation(run.folder, pictures=3)), run.task()
    prompts = ["a large red circle on a sandy beach", "a zebra"]
    panels = task.panels(judged, prompts, 1)
    assert [panel.text for panel in panels] == prompts and all(panel.pictures[0].shape == (3, 32, 32) for panel in panels)
    expected = judged.draw({TEXT: task.vocabulary.encode(prompts, task.learned["length"])})["image"]
    shown = task.panels(judged, prompts, 1)
    with torch.no_grad():
        decoded = judged.tokenizer.decode(task.pictures.to_map(expected))
    assert torch.equal(shown[0].pictures[0], (decoded[0] + 1).mul(127.5).round().clamp(0, 255).to(torch.uint8))


@pytest.mark.slow
def test_pictures_are_of_the_place_that_their_caption_names_and_guidance_helps(prior_of, tokenizer_run):
    folder = prior_of("text-to-image", tokenizer_run, 250, max_pictures=512)
    # 0.5 by chance
    assert evaluate_prior(PriorEvaluation(folder, pictures=64))["matching"] > 0.7
    run, names = FinishedPrior.open(folder), sorted(BACKGROUNDS)
    task, told = run.task(), {}
    for guidance in (0.0, 1.0, 3.0):
        judged = one_each(judge(run, PriorEvaluation(folder, pictures=256, sampling=Drawing(guidance=guidance))))
        labels = torch.tensor([names.index(judged.source.record(index)["label"]) for index in judged.examples.rows.pictures.tolist()])
        classifier = LinearClassifier.fit(_colors(real_pictures(judged, task.pictures, torch.arange(256))), labels, len(names))
        pictures = torch.cat([drawn for _, drawn in generated(judged, task.pictures, lambda tokens: {TEXT: tokens[TEXT]})])
        told[guidance] = (classifier.predict(_colors(pictures)) == labels).double().mean().item()
    # one place in eleven by chance, which is what a caption that is left out gives
    assert told[0.0] < 0.25 and told[1.0] > 0.4 and told[3.0] > told[1.0]


def _colors(pictures):
    return torch.nn.functional.adaptive_avg_pool2d(to_float(pictures, torch.device("cpu")), (4, 1)).flatten(1)
