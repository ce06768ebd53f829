"""What a prior answers to the examples of a split: the predicted segments, drawn from the others."""

from __future__ import annotations

import torch
from torch import Tensor

from training.tasks.task import IMAGE, Examples, Judged, Rows
from vqkit.models import Sampling

# A text, a box, an answer is to be right and not to vary.
LIKELIEST = Sampling(temperature=0)


def answers(judged: Judged, *, foreign_pictures: bool = False) -> dict[str, Tensor]:
    """The predicted segments of all examples, int64 (N, length) each, in the split's order, on the CPU.

    foreign_pictures: each with the picture of the example half the split away: what the rest of its condition tells alone.
    """
    conditions = [segment.name for segment in judged.prior.layout.conditions]
    generator, count = judged.generator(), len(judged.examples)
    found: dict[str, list[Tensor]] = {segment.name: [] for segment in judged.prior.layout.predicted}
    for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "answer"):
        given = {name: tokens[name] for name in conditions}
        if foreign_pictures:
            given[IMAGE] = judged.examples.batch((numbers + count // 2) % count, judged.device)[IMAGE]
        drawn = judged.draw(given, generator)
        for name, parts in found.items():
            parts.append(drawn[name].cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def varied(judged: Judged, count: int) -> Examples:
    """One example each of the first pictures: of a picture's own ones the first, of the next picture's the second, and so on."""
    own: dict[int, list[int]] = {}
    for number, picture in enumerate(judged.examples.rows.pictures.tolist()):
        own.setdefault(picture, []).append(number)
    chosen = [numbers[place % len(numbers)] for place, numbers in enumerate(list(own.values())[:count])]
    return judged.examples.where(torch.tensor(chosen))


def asked(judged: Judged, tokens: dict[str, Tensor], about: list[dict]) -> Examples:
    """Examples of what a user asks, tokens (N, length) of every segment but the picture's, of the first pictures of the split in turn."""
    pictures = list(dict.fromkeys(judged.examples.rows.pictures.tolist()))
    numbers = torch.tensor([pictures[number % len(pictures)] for number in range(len(about))])
    return judged.examples.of(Rows(numbers, tokens, about))


def shares(values: Tensor, about: list[dict], name: str, key: str = "type") -> dict[str, float]:
    """The mean of values (N,) as `name`, and as `name`_KIND that of the examples whose `about[key]` is KIND, where they have one."""
    kinds = sorted({str(fact[key]) for fact in about if fact.get(key)})
    found = {name: values.double().mean().item()}
    for kind in kinds:
        own = torch.tensor([str(fact.get(key)) == kind for fact in about])
        found[f"{name}_{kind}"] = values[own].double().mean().item()
    return found
