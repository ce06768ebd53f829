"""One self-contained HTML page about one or more runs: numbers, pictures, curves, codes and words."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from training.data.batches import PictureDataset, to_float, to_uint8
from training.data.regions import regions_of
from training.data.sources import Source
from training.evaluate import MEAN_COLOR
from training.guidance import load_guidance
from training.pictures import curves, picture_rows, picture_sheet, usage_bars, word_overlay
from training.region_words import region_figure, words_in
from training.runs import FinishedRun
from training.word_maps import map_rows, word_maps
from vqkit.models import Tokenizer
from vqkit.objectives import LanguageGuidance

_STYLE = Path(__file__).with_name("report.css")
# Pictures whose words are shown, and regions of each.
_WORDED, _REGIONS = 4, 3


@dataclass(frozen=True)
class Report:
    """Which runs are shown, and where the page goes."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, compared in this order."""
    out: Path = Path("report.html")
    """The page. The pictures alone go to a .png of the same name."""
    pictures: int = 8
    """How many pictures are reconstructed."""

    def __post_init__(self):
        if not self.runs:
            raise ValueError("runs: expected at least one folder, got none")
        if self.pictures < 1:
            raise ValueError(f"pictures: expected at least 1, got {self.pictures}")


@dataclass(frozen=True)
class Shown:
    """A run with its name on the page, its model and the same unseen pictures as the others, (N, 3, R, R) uint8, with their numbers."""

    name: str
    run: FinishedRun
    model: Tokenizer
    pictures: Tensor
    numbers: list[int]
    captions: list[str]
    split: Source

    @property
    def source(self) -> str:
        return self.split.name


def write_report(wanted: Report, extra_rows: list[dict] | None = None) -> Path:
    """Write the page and return its path. Raises ValueError where a folder is no run or the pictures are gone.

    extra_rows: metrics to show beside those of the runs, such as the mean-colour floor's.
    """
    runs = [FinishedRun.open(folder) for folder in wanted.runs]
    names = _distinct_names(runs)
    shown = [show(name, run, wanted.pictures) for name, run in zip(names, runs, strict=True)]
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} tokenizers"
    return write_page(wanted.out, title, shown, _numbers(shown, extra_rows or []))


def write_page(out: Path, title: str, shown: list[Shown], opening: str) -> Path:
    """A page that opens with the given HTML and goes on with pictures, curves, codes and words of the runs, in one step; returns its path.

    The pictures alone go to a .png beside it, where all runs have the same ones.
    """
    rows = _pictures(shown)
    sections = [opening, _reconstructions(shown, rows), _training(shown), _usage(shown), _words(shown), _regions(shown), _word_maps(shown)]
    write_html(out, title, _subtitle(shown), sections)
    if not _several_sources(shown):
        picture_sheet(rows).save(out.with_suffix(".png"))
    return out


def write_html(out: Path, title: str, subtitle: str, sections: list[str]) -> Path:
    """A page of sections, those that are not empty, in one step; returns its path."""
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>
{_STYLE.read_text()}</style></head>
<body><h1>{html.escape(title)}</h1>
<p class="quiet">{html.escape(subtitle)}</p>
{"".join(section for section in sections if section)}
</body></html>
"""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, out)
    return out


def show(name: str, run: FinishedRun, count: int) -> Shown:
    """A run with pictures evenly spaced through its unseen split. Raises ValueError where they are gone."""
    source = run.unseen()
    dataset = PictureDataset(source, run.config["resolution"], fit=run.config["fit"], memory_budget=0)
    stride = max(1, len(source) // count)
    pictures, indices = dataset.__getitems__([(0, index) for index in range(0, len(source), stride)][:count])
    captions = [(source.record(index).get("captions") or [""])[0] for index in indices.tolist()]
    return Shown(name, run, run.model(), pictures, indices.tolist(), captions, source)


_HEADINGS = ("", "steps", "pictures", "PSNR, dB", "SSIM", "L1", "codes a picture", "codes used (each part)", "perplexity")


def _numbers(shown: list[Shown], extra_rows: list[dict]) -> str:
    rows = [(item.name, item.run.metrics()) for item in shown] + [(row["recipe"], row) for row in extra_rows]
    missing = ", ".join(name for name, metrics in rows if metrics is None)
    note = f"<p class='quiet'>Not evaluated yet: {html.escape(missing)} (python -m training evaluate).</p>" if missing else ""
    measured = [(name, metrics) for name, metrics in rows if metrics is not None]
    if not measured:
        return f"<h2>Numbers</h2>{note}"
    headings = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{'</td><td>'.join(_cells(metrics))}</td></tr>" for name, metrics in measured)
    where = "; ".join(sorted({f"{metrics['data']}, {metrics['split']}, {metrics['resolution']} pixels" for _, metrics in measured}))
    floor = " mean-color replaces every picture by its own mean colour." if any(row["recipe"] == MEAN_COLOR for row in extra_rows) else ""
    return f"""<h2>Numbers</h2>
<p class="quiet">Measured on {html.escape(where)}. Reconstructions are rounded to 8 bits; L1 is on a scale of 0 to 1; codes used:
the fraction selected at least once on these pictures; perplexity: the mean over the parts of a codebook.{floor}</p>
<div class="wide"><table class="numbers"><thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table></div>
{note}"""


def _cells(metrics: dict) -> list[str]:
    none = "&ndash;"
    cells = [f"{metrics['steps']:,}" if metrics["steps"] else none, f"{metrics['images']:,}"]
    cells += [f"{metrics['psnr']:.2f}", f"{metrics['ssim']:.4f}", f"{metrics['l1']:.4f}"]
    if not metrics.get("codebook_sizes"):
        return [*cells, none, none, none]
    parts = ", ".join(f"{part:.1%}" for part in metrics["codebook_usage_parts"])
    return [*cells, f"{metrics['codes_per_image']:,}", f"{metrics['codebook_usage']:.1%} ({parts})", f"{metrics['perplexity']:.0f}"]


@torch.no_grad()
def _pictures(shown: list[Shown]) -> dict[str, Tensor]:
    """Originals and what each run makes of them, by name."""
    rows: dict[str, Tensor] = {}
    for item in shown:
        rows.setdefault(f"originals, {item.source}" if _several_sources(shown) else "originals", item.pictures)
        rows[item.name] = to_uint8(item.model(to_float(item.pictures, torch.device("cpu"))).reconstruction)
    return rows


def _reconstructions(shown: list[Shown], rows: dict[str, Tensor]) -> str:
    return f"""<h2>Originals and reconstructions</h2>
<p class="quiet">Pictures evenly spaced through {html.escape(shown[0].source)}, not chosen by hand; what is reconstructed is seen
through the codes alone.</p>{picture_rows(rows, shown[0].captions)}"""


_CURVES = {
    "l1": ("L1 while training", "mean |difference|, pixels in -1..1"),
    "l2": ("squared error while training", "mean square, pixels in -1..1"),
    "codebook_usage": ("codes used in the last 50 steps", "fraction of codes"),
    "perplexity": ("perplexity of a batch", "codes"),
    "masked_words": ("masked words while training", "cross-entropy, nats a token"),
    "translation": ("translation while training", "cross-entropy, nats a token"),
    "global_alignment": ("pictures and captions while training", "cross-entropy, nats a picture"),
    "relation": ("relations of words and codes while training", "mean square difference of cosines"),
}


def _training(shown: list[Shown]) -> str:
    logs = {item.name: item.run.log() for item in shown}
    drawings = []
    for key, (title, unit) in _CURVES.items():
        series = {name: [(line["step"], line[key]) for line in log if key in line] for name, log in logs.items()}
        series = {name: points for name, points in series.items() if points}
        if series:
            drawings.append(curves(series, title, unit))
    return f"<h2>Training</h2><div class='side'>{''.join(drawings)}</div>" if drawings else ""


def _usage(shown: list[Shown]) -> str:
    counts, parts = {}, {}
    for item in shown:
        path = item.run.folder / "code_counts.json"
        if path.is_file() and (found := json.loads(path.read_text())):
            counts[item.name] = found
            parts[item.name] = item.model.part_names or [f"codebook {n}" for n in range(1, len(found) + 1)]
    if not counts:
        return ""
    return f"""<h2>Codes</h2>
<p class="quiet">How often each code was selected on the evaluated pictures, on a logarithmic scale; codes to the right of the filled
area were never selected.</p><div class="side">{usage_bars(counts, parts)}</div>"""


@torch.no_grad()
def _words(shown: list[Shown]) -> str:
    blocks = []
    for item in shown:
        if not item.model.words:
            continue
        some = item.pictures[:_WORDED]
        indices = item.model.encode(to_float(some, torch.device("cpu")))
        figures = ""
        for picture, codes, caption in zip(some, indices, item.captions):
            overlay = word_overlay(picture, codes, item.model.words, item.model.selections)
            figures += f"<figure>{overlay}<figcaption>{html.escape(caption)}</figcaption></figure>"
        blocks.append(f"""<h2>Words of {html.escape(item.name)}</h2>
<p class="quiet">Every code is a word. In each cell: the word of each codebook whose code was the nearest to most of its positions.
Captions chose the words and their graph; training then sees pictures alone, so a word tells which code was selected and need not
describe the picture.</p>
<div class="side">{figures}</div>{_frequent_words(item)}""")
    return "".join(blocks)


def _frequent_words(item: Shown) -> str:
    path = item.run.folder / "code_counts.json"
    if not path.is_file():
        return ""
    said = []
    for kind, words, counts in zip(item.model.part_names, item.model.words, json.loads(path.read_text())):
        order = sorted(range(len(words)), key=lambda number: -counts[number])[:12]
        said.append(f"{kind}: " + ", ".join(words[number] for number in order if counts[number]))
    return f"<p class='quiet'>Selected most often: {html.escape('; '.join(said))}.</p>"


@torch.no_grad()
def _regions(shown: list[Shown]) -> str:
    blocks = []
    for item in shown:
        config = item.run.config
        known = [regions_of(item.split, number, config["resolution"], config["fit"])[:_REGIONS] for number in item.numbers] if item.model.words else []
        figures = ""
        for picture, regions in [pair for pair in zip(item.pictures, known) if pair[1]][:_WORDED]:
            (codes,) = item.model.encode(to_float(picture.unsqueeze(0), torch.device("cpu")))
            said = [words_in(region.box, codes, item.model.words, item.model.selections) for region in regions]
            figures += region_figure(picture, regions, said)
        if figures:
            blocks.append(f"""<h2>Regions and their nearest words, {html.escape(item.name)}</h2>
<p class="quiet">Boxes of phrases that people wrote about the picture, and of each codebook the words whose codes were the nearest most often
inside.</p><div class="side">{figures}</div>""")
    return "".join(blocks)


def _word_maps(shown: list[Shown]) -> str:
    blocks = []
    for item in shown:
        if item.run.config.get("guidance") != "lgvq":
            continue
        try:
            guidance, encoder = load_guidance(item.run.folder / "model", torch.device("cpu"))
        except (ValueError, FileNotFoundError) as missing:
            drawn = f"<p class='quiet'>Not shown: {html.escape(str(missing))}.</p>"
        else:
            if not isinstance(guidance, LanguageGuidance):
                continue
            maps = [word_maps(item.model, guidance, encoder, picture, caption)
                    for picture, caption in zip(item.pictures[:_WORDED], item.captions)]
            drawn = map_rows(item.pictures[:_WORDED], item.captions[:_WORDED], maps)
        if drawn:
            blocks.append(f"""<h2>Words and codes of {html.escape(item.name)}</h2>
<p class="quiet">The cosine between a word of the caption and each position of the map as the guidance reads it, from dark, the smallest of
the picture, to bright, the largest; the numbers below are both.</p>{drawn}""")
    return "".join(blocks)


def _subtitle(shown: list[Shown]) -> str:
    parts = []
    for item in shown:
        config = item.run.config
        batch = config["batch_size"] * config["accumulation"]
        parts.append(f"{item.name}: recipe {item.run.recipe}, {item.run.steps:,} steps of {batch} pictures a rank "
                     f"at {config['resolution']} pixels, data {Path(config['data']).name}, seed {config['seed']}")
    return ". ".join(parts) + "."


def _several_sources(shown: list[Shown]) -> bool:
    return len({(item.source, item.run.config["resolution"]) for item in shown}) > 1


def _distinct_names(runs: list[FinishedRun]) -> list[str]:
    """The recipe's name, or the folder's where two runs have one recipe."""
    recipes = [run.recipe for run in runs]
    return [run.recipe if recipes.count(run.recipe) == 1 else f"{run.recipe} ({run.folder.name})" for run in runs]
