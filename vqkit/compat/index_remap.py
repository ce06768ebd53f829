"""Indices of the codes that are in use, in the place of those of all codes (taming's ``remap``)."""

import numpy as np
import torch
from torch import Tensor, nn


class IndexRemap(nn.Module):
    """What quantizers with a ``remap`` share: the buffer ``used`` and the way there and back.

    A lookup table of K entries takes the place of a comparison of every index with every used code. Masked indices, -1, stay.
    """

    def _set_remap(self, remap: str | Tensor | None, unknown_index: str | int, size: int) -> None:
        """remap: a file that ``numpy.load`` reads, or a tensor: the used indices; None for all ``size`` codes."""
        if not (unknown_index in ("random", "extra") or isinstance(unknown_index, int)):
            raise ValueError(f"unknown_index: expected 'random', 'extra' or an int, got {unknown_index!r}")
        self.remap = remap
        self.re_embed = size
        if remap is not None:
            used = remap.detach().clone() if isinstance(remap, Tensor) else torch.as_tensor(np.load(remap))
            self.register_buffer("used", used)
            self.re_embed = len(used) + (unknown_index == "extra")
            self.unknown_index = len(used) if unknown_index == "extra" else unknown_index

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Place in ``used`` of each index, int64 of any shape; ``unknown_index`` for one that is not in it.

        "random": any of the used ones, drawn from torch's default generator (another draw than taming's, which waits for the device).
        """
        used = self.used.to(inds)
        places = torch.arange(len(used), device=inds.device)
        size = max(int(self.n_e), 1)
        table = torch.full((size,), len(used), device=inds.device).scatter_reduce(0, used, places, "amin")
        found = table[inds.clamp(min=0)]
        unknown = torch.randint_like(inds, self.re_embed) if self.unknown_index == "random" else self.unknown_index
        return torch.where(inds < 0, inds, torch.where(found < len(used), found, unknown))

    def unmap_to_all(self, inds: Tensor) -> Tensor:
        """The index among all codes of each place in ``used``; for the extra one that of place 0. Unlike taming's, ``inds`` stays."""
        used = self.used.to(inds)
        known = inds.where(inds < len(used), 0) if self.re_embed > len(used) else inds
        return used[known.clamp(min=0)].where(inds >= 0, inds)
