"""Linear probe: what class a picture is of, told by a linear classifier from the states of a prior that never saw classes."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source
from training.linear_classifier import LinearClassifier
from training.tasks.labels import label_rows, learn_classes
from training.tasks.task import IMAGE, Column, Examples, Judged, Panel, Rows, Task, nats_per_token
from vqkit.models import Prior, Segment

# Values that a matrix of frequencies may have: 1 GiB in float64.
_MOST_FREQUENCIES = 1 << 27


class LinearProbe(Task):
    """Sequences [picture], as of `Unconditional`: a prior of that task can be probed as it is, `evaluate RUN --task linear-probe`.

    A picture's feature is the mean over its positions of the states after block 15 of 36 or 10 of 24 (VIM), which is 5/12 of the depth.
    The classifier is fitted to the features of the pictures that the prior was trained on, with their classes, and judged on the split.

    Metrics: nats a token; `top1`, the share of right classes; `majority`, that of the most frequent class of training, which is what
    knowing nothing reaches; `top1_codes`, that of the same classifier on how often a picture has each code, which is what the tokenizer
    alone tells: only what lies above it is the prior's (left out where the frequencies would fill too much memory); `block`, the one that
    was read. Source: VIM, arXiv 2110.04627, section 4.4, with pictures not augmented and
    `LinearClassifier` in the place of training by steps.
    """

    name = "linear-probe"
    summary = "the class of a picture from a prior's middle states (VIM); top-1 accuracy"
    gives = "word"
    priors_of = "unconditional"
    columns = (Column("top-1", "top1", ".1%"), Column("of codes", "top1_codes", ".1%"), Column("majority", "majority", ".1%"))
    note = ("Top-1 from the middle states of the prior of unconditional generation; of codes: from how often a picture has each code; "
            "majority: the most frequent class of training.")

    @classmethod
    def learn(cls, source: Source) -> dict:
        return learn_classes(source)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (self.pictures.segment(predicted=True),)

    def rows(self, source: Source) -> Rows:
        pictures, labels = label_rows(source, self.learned["classes"])
        return Rows(pictures, about=[{"class": label} for label in labels.tolist()])

    def measure(self, judged: Judged) -> dict[str, float]:
        prior, classes = judged.prior, len(self.learned["classes"])
        if not isinstance(prior, Prior):
            raise ValueError(f"run: {self.name} reads the states of an autoregressive prior, got a {prior.name}")
        if judged.training is None:
            raise ValueError(f"training: {self.name} fits a classifier to the examples of training, got none")
        block = middle_block(prior.settings.depth)
        found, training = nats_per_token(judged), judged.training()
        known, labels = pooled_states(judged, training, block), _labels(training)
        classifier = LinearClassifier.fit(known, labels, classes)
        wanted = _labels(judged.examples)
        right = classifier.predict(pooled_states(judged, judged.examples, block)) == wanted
        most = labels.bincount(minlength=classes).argmax()
        found |= {"top1": right.double().mean().item(), "majority": (wanted == most).double().mean().item(), "block": block}
        segment = self.segments[0]
        if len(training) * sum(segment.sizes) <= _MOST_FREQUENCIES:
            classifier = LinearClassifier.fit(code_frequencies(training, segment), labels, classes)
            right = classifier.predict(code_frequencies(judged.examples, segment)) == wanted
            found["top1_codes"] = right.double().mean().item()
        return found

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        raise ValueError(f"run: {self.name} tells classes and makes nothing to look at; a prior of unconditional is for that")


def middle_block(depth: int) -> int:
    """The block that is read, counted from 1: 15 of 36, 10 of 24, and of others the same share, rounded to the nearest."""
    return max(1, (5 * depth + 6) // 12)


def pooled_states(judged: Judged, examples: Examples, block: int) -> Tensor:
    """The mean over a picture's positions of the states after a block, float32 (N, width) on the CPU."""
    found = []
    for _, tokens in examples.batches(judged.batch_size, judged.device, "states"):
        found.append(judged.prior.states(tokens, block, IMAGE).float().mean(1).cpu())
    return torch.cat(found)


def code_frequencies(examples: Examples, segment: Segment) -> Tensor:
    """How often a picture has each code of each part, float32 (N, K_1 + K_2 + ...), mean over its positions."""
    found = []
    for numbers in torch.arange(len(examples)).split(1024):
        parts = segment.columns(examples.batch(numbers)[IMAGE]).split(segment.selections, -1)
        counts = [torch.zeros(len(numbers), size).scatter_add(1, part.flatten(1), torch.ones(part.flatten(1).shape))
                  for size, part in zip(segment.sizes, parts, strict=True)]
        found.append(torch.cat(counts, 1) / segment.length)
    return torch.cat(found)


def _labels(examples: Examples) -> Tensor:
    return torch.tensor([about["class"] for about in examples.rows.about])
