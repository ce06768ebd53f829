"""How good a tokenizer is on pictures of a split: PSNR, SSIM, L1, codebook usage and perplexity; guided by captions, how it agrees with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor, nn

from training.alignment import alignment_line, measure_alignment
from training.checkpoint import write_json
from training.data.batches import PictureDataset, default_workers
from training.data.sources import open_split
from training.distributed import Ranks, started
from training.feature_net import feature_networks
from training.guidance import load_guidance
from training.rates import measure_rates
from training.reconstruction import measure
from training.runs import FinishedRun
from training.translation import measure_translation, translation_line
from vqkit.metrics import PictureFeatures
from vqkit.metrics.features import METRICS
from vqkit.models import RateAdaptiveTokenizer
from vqkit.objectives import LPIPS, CaptionTranslation

MEAN_COLOR = "mean-color"


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on which pictures."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder; or "mean-color", every picture replaced by its own mean colour: the floor of any tokenizer."""
    data: str
    """A folder or zip with splits, or "scenes"."""
    split: Literal["train", "val", "test"] = "test"
    """Which split."""
    resolution: int | None = None
    """Side in pixels. Default: that of the run's training; 64 for mean-color."""
    fit: Literal["crop", "stretch"] | None = None
    """Default: that of the run's training; crop for mean-color."""
    batch_size: int = 32
    """Pictures in a pass; it changes nothing but the speed."""
    workers: int | None = None
    """Processes that decode pictures. Default: half of the processors, at most 8."""
    device: str = "auto"
    """"cuda", "cpu"; auto is cuda where there is one."""
    lpips_weights: Path | None = None
    """VGG16's ImageNet weights in torchvision's naming, such as vgg16-397923af.pth; given, LPIPS is measured."""
    inception_weights: Path | None = None
    """pytorch-fid's pt_inception-2015-12-05-6726825d.pth; given, FID, KID and the like of the reconstructions are measured."""
    feature_net: Path | None = None
    """A folder where feature networks of data sets are kept: for FD(net), KD(net) and the like of the reconstructions, which are no FID. A
    network that is not there yet is trained on the data's train split first, in about a minute."""
    rates: tuple[int, ...] = ()
    """Numbers of codes at which a rate-adaptive tokenizer (RAQ) is measured, besides that of its source codes."""
    out: Path | None = None
    """Where metrics.json is written. Default: the run's folder; nowhere for mean-color."""

    def __post_init__(self):
        for name in ("batch_size", "resolution"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if any(rate < 1 for rate in self.rates):
            raise ValueError(f"rates: expected at least 1 each, got {self.rates}")


class MeanColor(nn.Module):
    """Every picture replaced by its mean colour: what one colour a picture can reach."""

    codebook_sizes: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True).expand_as(images)


def evaluate(wanted: Evaluation) -> dict:
    """Evaluate as asked, print a table, write metrics.json (and code_counts.json) on the first rank; returns the metrics."""
    floor = str(wanted.run) == MEAN_COLOR
    run = None if floor else FinishedRun.open(wanted.run)
    model = MeanColor() if run is None else run.model()
    trained = {"resolution": 64, "fit": "crop", "seed": 0} if run is None else run.config
    resolution = wanted.resolution or trained["resolution"]
    if run is not None and resolution % model.downsampling:
        raise ValueError(f"resolution: expected a multiple of {model.downsampling}, the model's downsampling, got {resolution}")
    if wanted.rates and not isinstance(model, RateAdaptiveTokenizer):
        raise ValueError(f"rates: {wanted.run} has one number of codes; expected none, or a raq")
    source = open_split(wanted.data, wanted.split, seed=trained["seed"])
    fit = wanted.fit or trained["fit"]
    dataset = PictureDataset(source, resolution, fit=fit, memory_budget=0)
    with started(wanted.device) as ranks:
        workers = default_workers() if wanted.workers is None else wanted.workers
        lpips = None if wanted.lpips_weights is None else LPIPS(wanted.lpips_weights)
        networks = feature_networks(ranks, wanted.data, resolution, fit=fit, inception_weights=wanted.inception_weights,
                                    folder=wanted.feature_net)
        metrics, usage = measure(model, dataset, ranks, batch_size=wanted.batch_size, workers=workers, lpips=lpips, networks=networks)
        metrics |= {"recipe": MEAN_COLOR if run is None else run.recipe, "steps": 0 if run is None else run.steps, "data": wanted.data,
                    "split": wanted.split, "resolution": resolution}
        if run is not None and run.config.get("guidance"):
            metrics |= _alignment(run, model, dataset, ranks, batch_size=wanted.batch_size, workers=workers)
        if wanted.rates:
            metrics["rates"] = measure_rates(model, wanted.rates, dataset, ranks, batch_size=wanted.batch_size, workers=workers)
        folder = wanted.out or (None if run is None else run.folder)
        if ranks.first:
            print(table([metrics, *({**metrics, **found, "recipe": f"{metrics['recipe']} at {rate}"} for rate, found in metrics.get("rates", {}).items())]))
            for network in networks:
                print(distance_line(network, metrics))
            if "lpips" in metrics:
                print(f"LPIPS {metrics['lpips']:.4f}")
            if "captioned" in metrics:
                print(translation_line(metrics) if "caption_nats" in metrics else alignment_line(metrics))
            if folder is not None:
                write_json(folder / "metrics.json", metrics)
                write_json(folder / "code_counts.json", [part.tolist() for part in usage.counts] if usage else [])
    return metrics


def _alignment(run: FinishedRun, model: nn.Module, dataset: PictureDataset, ranks: Ranks, **loading: int) -> dict:
    """Metrics of a guided run against captions; where the captions or the text model are not here the reason, and no metrics."""
    found, reason = {}, f"{dataset.source.name} has no captions that fit the text model"
    try:
        guidance, encoder = load_guidance(run.folder / "model", ranks.device)
    except (ValueError, FileNotFoundError) as missing:
        reason = str(missing)
    else:
        measured = measure_translation if isinstance(guidance, CaptionTranslation) else measure_alignment
        found = measured(model, guidance, encoder, dataset, ranks, seed=run.config["seed"], **loading)
    if not found and ranks.first:
        print(f"not measured against captions: {reason}")
    return found


def distance_line(network: PictureFeatures, metrics: dict) -> str:
    """What was measured by a feature network, by the names it gives, and which network that was."""
    found = [f"{network.label(metric)} {metrics[network.key(metric)]:.4f}" for metric in METRICS if network.key(metric) in metrics]
    return f"{', '.join(found)}  [{network.identity}]"


_COLUMNS = {"recipe": ("recipe", ""), "steps": ("steps", ",d"), "images": ("images", ",d"), "psnr": ("PSNR", ".2f"),
            "ssim": ("SSIM", ".4f"), "l1": ("L1", ".4f"), "codebook_usage": ("codes used", ".1%"), "perplexity": ("perplexity", ".1f")}


def table(rows: list[dict]) -> str:
    """Metrics as a text table, a line each."""
    cells = [[heading for heading, _ in _COLUMNS.values()]]
    for row in rows:
        absent = () if row.get("codebook_sizes") else ("codebook_usage", "perplexity")
        cells.append(["-" if name in absent else format(row[name], form) for name, (_, form) in _COLUMNS.items()])
    first, *others = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others))]) for line in cells)
