"""What adapters share whose codes are running means: ``quantizer.codebook`` is an ``EMACodebook``, under the library's state keys."""

from torch import Tensor, nn

from vqkit.codebooks import EMACodebook
from vqkit.compat.state import StateKey


def ema_keys(**theirs: str) -> list[StateKey]:
    """The library's names, in its order, of ``codes`` (K, D), ``cluster_size`` (K,) and ``embed_sum`` (K, D); it has no ``initialised``."""
    book = "quantizer.codebook."
    return [*(StateKey(book + ours, name) for ours, name in theirs.items()), StateKey(f"{book}initialised", None)]


def started_empty(codebook: EMACodebook, codes: Tensor | None = None) -> EMACodebook:
    """The codebook with these codes, (K, D), and a use of zero, where ours starts from one latent a code."""
    codebook.cluster_size.zero_()
    if codes is not None:
        codebook.codes.copy_(codes)
        codebook.embed_sum.copy_(codes)
    return codebook


def settled(module: nn.Module, x: Tensor):
    """``forward`` of a copy that neither starts its codebook from the batch nor replaces codes, both at random."""
    for part in module.modules():
        if hasattr(part, "threshold_ema_dead_code"):
            part.threshold_ema_dead_code = 0
        if hasattr(part, "inited"):
            part.inited.fill_(1)
        if isinstance(part, EMACodebook):
            part.initialised.fill_(True)
            part._awaits_start = False
    return type(module).forward(module, x)
