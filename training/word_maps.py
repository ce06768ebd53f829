"""Where a guided tokenizer sees the words of a caption: maps of the similarity between a word and the positions of the codes."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batches import to_float
from training.pictures import embedded
from vqkit.language import TextEncoder, tag_words
from vqkit.models import Tokenizer
from vqkit.objectives import LanguageGuidance
from vqkit.objectives.alignment import word_states

_MOST = 4
_WORD = re.compile(r"[^\W_]+")


class WordMap(NamedTuple):
    """A word of a picture's caption and its cosine (h, w) with each position of the map."""

    word: str
    similarity: Tensor


@torch.no_grad()
def word_maps(model: Tokenizer, guidance: LanguageGuidance, encoder: TextEncoder, picture: Tensor, caption: str) -> list[WordMap]:
    """The first four adjectives and nouns of a caption over a picture (3, R, R) uint8.

        similarity_k = s(e_w, Z_vt,k)

    with e_w the text model's state of the word and Z_vt the guidance's transformer over the quantised map: what relationship alignment
    takes the argmax of. [] for a caption that is blank, too long, or of which the text model does not know every word.
    Source: figures 6 and 7 of arXiv 2405.14206 (LG-VQ) compare words with codes; the map is ours.
    """
    if not caption.strip() or not encoder.fits(caption):
        return []
    device = next(model.parameters()).device
    quantized = model.eval()(to_float(picture.unsqueeze(0), device)).quantized
    tokens = encoder.tokenize([caption]).to(device)
    texts = _WORD.findall(caption.lower())
    # The text model numbers the words that it knows: the texts are theirs where there are as many.
    if len(texts) != int(tokens.words.max()) + 1:
        return []
    states, _ = word_states(guidance.read(encoder, tokens, torch.zeros_like(tokens.visible)).states, tokens.words)
    positions = guidance.eval().reader(quantized)[0, 1:]
    similarity = F.normalize(states[0, : len(texts)].float(), dim=1) @ F.normalize(positions.float(), dim=1).T
    said = {word.text for word in tag_words(caption) if word.tag in ("adjective", "noun")}
    numbers = [texts.index(text) for text in dict.fromkeys(texts) if text in said][:_MOST]
    height, width = quantized.shape[2:]
    return [WordMap(texts[number], similarity[number].reshape(height, width).cpu()) for number in numbers]


def heat(picture: Tensor, similarity: Tensor) -> Tensor:
    """A picture (3, R, R) uint8 in grey under a map (h, w), dark to bright from its smallest to its largest value; (3, R, R) uint8."""
    grey = picture.float().mean(0) / 255
    low, high = similarity.min(), similarity.max()
    scaled = ((similarity - low) / (high - low).clamp_min(1e-12))[None, None]
    smooth = F.interpolate(scaled, size=grey.shape, mode="bilinear", align_corners=False)[0, 0].clamp(0, 1)
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](smooth.numpy())[..., :3]).permute(2, 0, 1)
    return ((0.4 * grey + 0.6 * colours) * 255).round().to(torch.uint8)


def map_rows(pictures: Tensor, captions: list[str], maps: list[list[WordMap]]) -> str:
    """A table: a row a picture, with the picture, its words' maps with their ranges below, and its caption; rows without maps left out."""
    rows = []
    for picture, caption, found in zip(pictures, captions, maps, strict=True):
        if not found:
            continue
        cells = f'<td><img src="{embedded(picture)}" alt="the picture"><span class="note">{html.escape(caption)}</span></td>'
        for word, similarity in found:
            cells += (f'<td><img src="{embedded(heat(picture, similarity))}" alt="{html.escape(word)}"><b>{html.escape(word)}</b> '
                      f'<span class="note">{similarity.min():.2f} to {similarity.max():.2f}</span></td>')
        rows.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table class="pictures">{"".join(rows)}</table></div>' if rows else ""
