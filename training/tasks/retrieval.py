"""Image-to-text retrieval: a pool of captions ordered by how likely a picture makes them, by a prior of captioning."""

from __future__ import annotations

import torch
from torch import Tensor

from training.tasks.captioning import Captioning
from training.tasks.captions import TEXT
from training.tasks.distribution import one_each, real_pictures
from training.tasks.task import IMAGE, Column, Judged, Panel
from vqkit.metrics.retrieval import median_rank, recall_at, retrieval_ranks
from vqkit.models import ABSENT, Prior

POOL = 100


class Retrieval(Captioning):
    """Sequences [picture, caption], as of `Captioning`, whose runs it evaluates too: ``evaluate RUN --task retrieval``.

        score(picture, text) = log p(text | picture) - log p(text)

    where p(text) is that without a picture, for priors that were trained with `condition_dropout`; without it log p(text | picture) alone,
    by which short and common texts come first for every picture.

    Metrics, in pools of 100 pictures with one caption each, of a larger split the mean over pools of the same size as far as they go:
    `text_recall@k`: the own text is among the k best of the picture; `picture_recall@k`: the own picture is among the k best of the text;
    k of 1, 5 and 10, so that chance is k / `pool`; `text_median_rank` and `picture_median_rank`.

    Published set-up: the cosine of LG-VQ's e_CLS and e_EOT, which is `retrieval_recall` of a guided tokenizer, shown in pictures without
    figures (LG-VQ, section 4.3). Retrieval by the likelihood of a prior on its codes is ours.
    """

    name = "retrieval"
    summary = "the caption of a picture among those of others, and the picture of a caption; recall@1, 5, 10"
    priors_of = "captioning"
    columns = (
        Column("text recall@1", "text_recall@1", ".1%"), Column("text @5", "text_recall@5", ".1%"), Column("text @10", "text_recall@10", ".1%"),
        Column("picture recall@1", "picture_recall@1", ".1%"), Column("picture @5", "picture_recall@5", ".1%"),
        Column("picture @10", "picture_recall@10", ".1%"))
    note = "In pools of 100 pictures with one caption each, by the likelihoods of the prior of captioning; chance is 1, 5 and 10 %."

    def measure(self, judged: Judged) -> dict[str, float]:
        judged = one_each(judged)
        if len(judged.examples) < 2:
            raise ValueError("data: retrieval expected at least two pictures, got one")
        size = min(POOL, len(judged.examples))
        ranks: dict[str, list[Tensor]] = {"text": [], "picture": []}
        for numbers in torch.arange(len(judged.examples) // size * size).split(size):
            tokens = judged.examples.batch(numbers)
            scored = scores(judged, tokens[IMAGE], tokens[TEXT])
            own = _same(tokens[TEXT])
            ranks["text"].append(retrieval_ranks(scored, own))
            ranks["picture"].append(retrieval_ranks(scored.T, own))
        found = {"pool": size}
        for name, parts in ranks.items():
            found |= {f"{name}_recall@{k}": share for k, share in recall_at(torch.cat(parts)).items()}
            found[f"{name}_median_rank"] = median_rank(torch.cat(parts))
        return found

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """A picture and its three best texts of those shown, the own marked "*". Prompts are texts: each with its three best pictures."""
        judged = one_each(judged)
        examples = judged.examples if prompts else judged.examples.first(count)
        numbers = torch.arange(len(examples))
        tokens, pictures = examples.batch(numbers), real_pictures(judged, self.pictures, numbers)
        if prompts:
            best = _best(scores(judged, tokens[IMAGE], self.encode_texts(prompts)).T)
            return [Panel([pictures[number] for number in own], prompt) for own, prompt in zip(best, prompts, strict=True)]
        texts, panels = [fact["caption"] for fact in examples.rows.about], []
        for number, found in enumerate(_best(scores(judged, tokens[IMAGE], tokens[TEXT]))):
            listed = (f"{place}. {texts[text]}" + (" *" if text == number else "") for place, text in enumerate(found, 1))
            panels.append(Panel([pictures[number]], "\n".join(listed)))
        return panels


def scores(judged: Judged, pictures: Tensor, texts: Tensor) -> Tensor:
    """score(picture, text), see `Retrieval`, float64 (P, T) on the CPU, of the tokens of P pictures and T texts.

    Raises ValueError for a prior without exact likelihoods: of bounds neither the order nor the difference says anything.
    """
    prior = judged.prior
    if not isinstance(prior, Prior):
        raise ValueError(f"task: retrieval needs the likelihoods of an autoregressive prior, got one of {prior.name}")

    def likelihood(image: Tensor) -> Tensor:
        return prior.cross_log_likelihood({IMAGE: image.to(judged.device)}, texts.to(judged.device), judged.batch_size).double().cpu()

    found = likelihood(pictures)
    if prior.settings.condition_dropout > 0:
        found = found - likelihood(torch.full_like(pictures[:1], ABSENT))
    return found


def _same(texts: Tensor) -> Tensor:
    """bool (T, T): which texts (T, length) say the same, so that each picture has all of them for its own."""
    return (texts.unsqueeze(1) == texts).all(2)


def _best(scored: Tensor, count: int = 3) -> list[list[int]]:
    return scored.topk(min(count, scored.shape[1]), 1).indices.tolist()
