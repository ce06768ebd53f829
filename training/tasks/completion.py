"""Image completion: the lower half of a picture from its upper half."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.sources import Source
from training.tasks.distribution import DISTANCES, PictureDistances, decoded, generated, real_pictures
from training.tasks.task import IMAGE, Column, Judged, Panel, Rows, Task, nats_per_token
from vqkit.metrics import psnr, ssim
from vqkit.models import ABSENT, Prior, Segment

GREY = 127


class Completion(Task):
    """Sequences [picture], as of `Unconditional`; the rows of codes of the upper half are given, the others drawn.

    Metrics, all of the lower half but the first:
        image_nats_per_token: of whole pictures.  completed_nats_per_token: of the lower half given the upper.
        matching: how often the lower half is likelier after its own upper half than after that of another picture; 0.5 by chance.
            These two for autoregressive priors only: for others they would be differences of bounds, which bound nothing.
        psnr, ssim: completed against real pixels; `_foreign` against those of another picture, which is what chance reaches;
            `_mean_color`: the mean colour of the given half against the real pixels; `_reconstructed`: what the tokenizer can show.
            A sample is sharp and may differ from what was there, so the mean colour, a blur, can have the higher PSNR.
        The distance of completed from real pictures, whole.
    Source: Esser et al., arXiv 2012.09841, section 4.1; LG-VQ, table 4, by FID on CelebA-HQ, which is the recipe "gpt".
    """

    name = "completion"
    summary = "the lower half of a picture from its upper half; likelihood, PSNR, SSIM, distance of pictures"
    gives = "picture"
    priors_of = "unconditional"
    columns = (
        Column("nats a position", "completed_nats_per_token", ".3f"), Column("matching", "matching", ".1%"), Column("PSNR, dB", "psnr", ".2f"),
        Column("foreign", "psnr_foreign", ".2f"), Column("mean colour", "psnr_mean_color", ".2f"),
        Column("reconstructed", "psnr_reconstructed", ".2f"), *DISTANCES)
    note = ("Of the lower half, by the prior of unconditional generation; matching: how often it is likelier after its own upper half "
            "than after another; foreign: against another picture; mean colour: of the given half.")

    @property
    def segments(self) -> tuple[Segment, ...]:
        if self.pictures.height < 2:
            raise ValueError(f"tokenizer: completion needs at least two rows of codes, got {self.pictures.height} of {self.pictures.width}")
        return (self.pictures.segment(predicted=True),)

    @property
    def given_tokens(self) -> int:
        """Positions of the upper half."""
        return self.pictures.height // 2 * self.pictures.width

    @property
    def given_pixels(self) -> int:
        """Rows of pixels of the upper half."""
        return self.pictures.height // 2 * self.pictures.resolution // self.pictures.height

    def rows(self, source: Source) -> Rows:
        return Rows(torch.arange(len(source)))

    def measure(self, judged: Judged) -> dict[str, float]:
        likelihood = self._likelihood(judged) if isinstance(judged.prior, Prior) else {}
        return nats_per_token(judged) | likelihood | self._similarity(judged)

    def panels(self, judged: Judged, prompts: list[str], count: int) -> list[Panel]:
        """The given half over grey, the completed picture, the real one."""
        if prompts:
            raise ValueError(f"prompt: {self.name} takes pictures of the data and no text, got {prompts[0]!r}")
        examples = judged.examples.first(count)
        numbers = torch.arange(len(examples))
        drawn = judged.draw(self.upper(examples.batch(numbers, judged.device)))
        completed, real = decoded(judged, self.pictures, drawn[IMAGE]), real_pictures(judged, self.pictures, numbers)
        given = real.clone()
        given[:, :, self.given_pixels :] = GREY
        return [Panel(list(pictures)) for pictures in zip(given, completed, real, strict=True)]

    def upper(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same pictures without their lower half."""
        given = tokens[IMAGE].clone()
        given[:, self.given_tokens :] = ABSENT
        return {IMAGE: given}

    def _likelihood(self, judged: Judged) -> dict[str, float]:
        nats, right, codes, count = 0.0, 0.0, 0, len(judged.examples)
        if count < 2:
            raise ValueError("data: expected at least two examples, to tell whose half is whose; got one")
        for numbers, tokens in judged.examples.batches(judged.batch_size, judged.device, "likelihood"):
            others = judged.examples.batch((numbers + count // 2) % count, judged.device)
            mixed = {IMAGE: torch.cat((others[IMAGE][:, : self.given_tokens], tokens[IMAGE][:, self.given_tokens :]), 1)}
            own, other = self._lower_given_upper(judged, tokens), self._lower_given_upper(judged, mixed)
            nats -= own.sum().item()
            codes += tokens[IMAGE][:, self.given_tokens :].numel()
            right += ((own > other).double() + 0.5 * (own == other).double()).sum().item()
        return {"completed_nats_per_token": nats / codes, "matching": right / count}

    def _lower_given_upper(self, judged: Judged, tokens: dict[str, Tensor]) -> Tensor:
        """log p of the lower half given the upper, (B,) in nats."""
        whole, upper = judged.prior.log_likelihood(tokens)[IMAGE], judged.prior.log_likelihood(self.upper(tokens))[IMAGE]
        return whole.double() - upper.double()

    def _similarity(self, judged: Judged) -> dict[str, float]:
        totals: dict[str, float] = {}
        distances, first, count = PictureDistances(judged.features), self.given_pixels, len(judged.examples)
        for numbers, completed in generated(judged, self.pictures, self.upper):
            real = real_pictures(judged, self.pictures, numbers)
            lower = real[:, :, first:]
            mean_color = real[:, :, :first].double().mean((2, 3), keepdim=True).expand(lower.shape)
            compared = {
                "": (completed[:, :, first:], lower),
                "_foreign": (completed[:, :, first:], real_pictures(judged, self.pictures, (numbers + count // 2) % count)[:, :, first:]),
                "_mean_color": (mean_color, lower),
                "_reconstructed": (decoded(judged, self.pictures, judged.examples.batch(numbers)[IMAGE])[:, :, first:], lower),
            }
            for name, (one, other) in compared.items():
                for metric, values in (("psnr", psnr(one, other, 255)), ("ssim", ssim(one, other, 255))):
                    totals[metric + name] = totals.get(metric + name, 0.0) + values.sum().item()
            if distances:
                distances.add(real, completed)
        return {name: total / count for name, total in totals.items()} | (distances.result() if distances else {})
