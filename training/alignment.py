"""How well the pictures of a split and their captions agree under a run's guidance."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from training.data.batches import EvaluationOrder, PictureDataset, load, to_float
from training.distributed import Ranks
from training.guidance import Captions
from vqkit.language import CaptionTokens, TextEncoder
from vqkit.metrics import choose_words, retrieval_recall, words_right
from vqkit.models import Tokenizer
from vqkit.objectives import LanguageGuidance

# Words hidden from a caption, as published.
_HIDDEN = (1, 3)


@torch.no_grad()
def measure_alignment(model: Tokenizer, guidance: LanguageGuidance, encoder: TextEncoder, dataset: PictureDataset, ranks: Ranks, *,
                      seed: int = 0, batch_size: int = 32, workers: int = 0) -> dict:
    """Metrics of codes against captions over a split, the same on one rank or many; {} where no picture has a caption that fits.

    Each picture has one caption and one set of hidden words, drawn by the seed. Of the losses that a guidance was trained without
    nothing is reported.

    captioned: pictures with a caption that fits.
    word_code_similarity_mse: mean over pairs of words of (s(e_wi, e_wj) - s(e_zi, e_zj))^2.
    masked_word_recall@1, masked_3_words_recall@1: hidden words that are named from codes and context, one or three hidden at once;
        masked_word_constant: the share of the most frequent one, what a constant answer would reach;
        masked_word_grey_picture: the recall with a grey picture in the place of each, what the context alone tells.
    image_to_text_recall@k: pictures whose caption is among the k nearest of all captions of the split.
    """
    model = model.to(ranks.device).eval()
    grey = model(torch.zeros(1, 3, dataset.resolution, dataset.resolution, device=ranks.device)).quantized
    seen = _Sums(guidance, encoder, grey, len(dataset), ranks)
    captions = Captions(dataset.source, encoder, seed)
    batches = load(dataset, EvaluationOrder(len(dataset), batch_size, ranks.rank, ranks.world), workers, ranks.device)
    for images, indices in tqdm(batches, desc="captions", unit="batch", disable=not ranks.first, leave=False, mininterval=1):
        if not len(images):
            continue
        keys = [(0, index) for index in indices.tolist()]
        tokens, draws = captions.draw(keys, indices.tolist())
        seen.add(model(to_float(images, ranks.device)).quantized, tokens.to(ranks.device), draws.to(ranks.device), indices.to(ranks.device))
    return seen.metrics()


class _Sums:
    """What adds up over batches and ranks."""

    def __init__(self, guidance: LanguageGuidance, encoder: TextEncoder, grey: Tensor, size: int, ranks: Ranks):
        self.guidance, self.encoder, self.ranks = guidance, encoder, ranks
        self.grey = guidance.reader(grey)
        names = ("captioned", "error", "pairs", "right_grey", *(f"{kind}{count}" for count in _HIDDEN for kind in ("right", "hidden")))
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=ranks.device) for name in names}
        self.constant = torch.zeros(len(encoder.token_embeddings), dtype=torch.int64, device=ranks.device)
        # Filled at this rank's pictures: the sum over ranks is everybody's.
        self.pictures, self.texts = (torch.zeros(size, encoder.width, device=ranks.device) for _ in range(2))
        self.ids = torch.zeros(size, encoder.context, dtype=torch.int64, device=ranks.device)
        self.present = torch.zeros(size, dtype=torch.int64, device=ranks.device)

    def add(self, quantized: Tensor, tokens: CaptionTokens, draws: Tensor, indices: Tensor) -> None:
        """Count one batch."""
        guidance, config = self.guidance, self.guidance.config
        # (B, 1 + h w, W)
        vision = guidance.reader(quantized)
        text = guidance.read(self.encoder, tokens, torch.zeros_like(tokens.visible))
        self.sums["captioned"] += tokens.present.sum()
        self.pictures[indices], self.texts[indices] = vision[:, 0].float(), text.sentence
        self.ids[indices], self.present[indices] = tokens.ids * tokens.visible, tokens.present.long()
        if config.gamma:
            errors, pairs = guidance.relation_errors(quantized, vision, text)
            self.sums["error"] += errors.double().sum()
            self.sums["pairs"] += pairs.sum()
        for count in _HIDDEN if config.beta else ():
            masked = choose_words(tokens.words, draws, count) & tokens.present.unsqueeze(1)
            hidden = guidance.read(self.encoder, tokens, masked)
            owners = (tokens.words + torch.arange(len(masked), device=masked.device).unsqueeze(1) * masked.shape[1])[masked]
            right = words_right(guidance.predict_masked(vision, hidden), tokens.ids[masked], owners)
            self.sums[f"right{count}"] += right.sum()
            self.sums[f"hidden{count}"] += len(right)
            if count == 1:
                single = masked & (masked.sum(1, keepdim=True) == 1)
                self.constant += torch.bincount(tokens.ids[single], minlength=len(self.constant))
                blind = guidance.predict_masked(self.grey.expand_as(vision), hidden)
                self.sums["right_grey"] += words_right(blind, tokens.ids[masked], owners).sum()

    def metrics(self) -> dict:
        """The means over all ranks."""
        config, ranks = self.guidance.config, self.ranks
        total = dict(zip(self.sums, ranks.sum(torch.stack(list(self.sums.values()))).tolist(), strict=True))
        if not total["captioned"]:
            return {}
        found = {"captioned": int(total["captioned"]), "text_encoder": self.encoder.name, "mask": config.mask}
        if config.gamma and total["pairs"]:
            found["word_code_similarity_mse"] = total["error"] / total["pairs"]
        if config.beta and total["hidden1"]:
            found["masked_word_recall@1"] = total["right1"] / total["hidden1"]
            found["masked_word_grey_picture"] = total["right_grey"] / total["hidden1"]
            found["masked_word_constant"] = ranks.sum(self.constant).max().item() / total["hidden1"]
        if config.beta and total["hidden3"]:
            found["masked_3_words_recall@1"] = total["right3"] / total["hidden3"]
        if config.alpha:
            pictures, texts, ids, present = (ranks.sum(tensor) for tensor in (self.pictures, self.texts, self.ids, self.present))
            there = present > 0
            _, same = ids[there].unique(dim=0, return_inverse=True)
            recalls = retrieval_recall(pictures[there], texts[there], same)
            found |= {f"image_to_text_recall@{k}": recall for k, recall in recalls.items()}
        return found


_NAMES = {"masked_word_recall@1": "1 masked word", "masked_word_grey_picture": "of a grey picture", "masked_word_constant": "constant word",
          "masked_3_words_recall@1": "3 masked words", **{f"image_to_text_recall@{k}": f"retrieval@{k}" for k in (1, 5, 10)}}


def alignment_line(metrics: dict) -> str:
    """The metrics in a line of text."""
    said = [f"{name} {metrics[key]:.1%}" for key, name in _NAMES.items() if key in metrics]
    if "word_code_similarity_mse" in metrics:
        said.append(f"word-code similarity MSE {metrics['word_code_similarity_mse']:.4f}")
    return f"{metrics['captioned']:,} captions: {', '.join(said)}"
