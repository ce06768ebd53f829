"""How well the captions of a split can be read off the codes of its pictures, by a run's translation."""

from __future__ import annotations

import math

import torch
from tqdm import tqdm

from training.data.batches import EvaluationOrder, PictureDataset, load, to_float
from training.distributed import Ranks
from training.guidance import Captions
from vqkit.language import TextEncoder
from vqkit.models import Tokenizer
from vqkit.objectives import CaptionTranslation


@torch.no_grad()
def measure_translation(model: Tokenizer, translation: CaptionTranslation, encoder: TextEncoder, dataset: PictureDataset, ranks: Ranks, *,
                        seed: int = 0, batch_size: int = 32, workers: int = 0) -> dict:
    """How surprising captions are given codes, the same on one rank or many; {} where no picture has a caption that fits.

    Each picture has one caption, drawn by the seed. The other picture is the one half the split further on, or the next readable one.

    captioned: pictures with a caption that fits.
    caption_nats: mean -log p of a caption's token given the codes of its picture; caption_perplexity: e to this power.
    caption_nats_other_picture, caption_perplexity_other_picture: the same given another picture's codes, what the language alone tells.
    caption_own_picture: captions that are more probable given their own picture.
    """
    model, translation = model.to(ranks.device).eval(), translation.to(ranks.device).eval()
    captions = Captions(dataset.source, encoder, seed)
    others = PictureDataset(dataset.source, dataset.resolution, fit=dataset.fit, memory_budget=0, replace_broken=True)
    sums = torch.zeros(5, dtype=torch.float64)
    batches = load(dataset, EvaluationOrder(len(dataset), batch_size, ranks.rank, ranks.world), workers, ranks.device)
    for images, indices in tqdm(batches, desc="translate", unit="batch", disable=not ranks.first, leave=False, mininterval=1):
        if not len(images):
            continue
        numbers = indices.tolist()
        tokens, _ = captions.draw([(0, index) for index in numbers], numbers)
        text = translation.read(tokens.to(ranks.device))
        foreign, _ = others.__getitems__([(0, (index + max(1, len(dataset) // 2)) % len(dataset)) for index in numbers])
        (own, counts), (other, _) = (translation.surprises(model(to_float(pictures, ranks.device)).quantized, text)
                                     for pictures in (images, foreign))
        better = (own < other) & (counts > 0)
        sums += torch.stack([part.double().sum().cpu() for part in (own, other, counts, better, text.present)])
    own, other, counts, better, captioned = ranks.sum(sums).tolist()
    if not counts:
        return {}
    found = {"captioned": int(captioned), "text_encoder": encoder.name, "caption_own_picture": better / captioned}
    for name, total in (("", own), ("_other_picture", other)):
        found |= {f"caption_nats{name}": total / counts, f"caption_perplexity{name}": math.exp(total / counts)}
    return found


def translation_line(metrics: dict) -> str:
    """The metrics in a line of text."""
    return (f"{metrics['captioned']:,} captions: {metrics['caption_nats']:.3f} nats a token given the picture's codes "
            f"(perplexity {metrics['caption_perplexity']:.1f}), {metrics['caption_nats_other_picture']:.3f} given another's "
            f"({metrics['caption_perplexity_other_picture']:.1f}); {metrics['caption_own_picture']:.1%} more probable given their own")
