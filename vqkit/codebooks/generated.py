"""What codebooks share whose vectors are computed: made anew at each training step, kept in eval mode."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from vqkit.codebooks.codebook import Codebook


class GeneratedCodebook(Codebook):
    """A codebook whose K vectors come out of parameters and buffers; a subclass says how in ``_generate``.

    In training the whole codebook is generated at each step. In eval mode it is constant: generated once, without gradient and
    outside autocast, kept, and generated again after a parameter or a buffer was replaced or written in place, after ``train``,
    ``eval`` or ``load_state_dict``, or on another device or in another dtype. Writes through ``.data`` are not seen, nor are any to
    tensors made under ``torch.inference_mode``: call ``eval`` after them. A compiled, exported or captured (CUDA graph) forward
    generates the codebook at every call.
    """

    trained_by_gradient = True

    def __init__(self, size: int, dim: int):
        super().__init__(size, dim)
        # Codes of eval mode, by what was asked for, and every tensor that they come from with its version.
        self._generated: dict[Hashable, Tensor] = {}
        self._versions: list[tuple[Tensor, int | None]] = []

    def _generate(self) -> Tensor:
        """The codes, (K, dim)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        return self._current(None, self._generate)

    def _current(self, asked: Hashable, generate: Callable[[], Tensor]) -> Tensor:
        """What ``generate`` gives: now in training, in eval mode what was kept of it under the key ``asked``."""
        sources = [*self.parameters(), *self.buffers()]
        device = sources[0].device
        if self.training:
            return _apart(device, generate)
        # A graph could neither see a change nor own what is kept for others.
        if torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            with torch.no_grad():
                return _apart(device, generate)
        versions = [(tensor, _version(tensor)) for tensor in sources]
        if not _same(versions, self._versions):
            self._generated, self._versions = {}, versions
        if asked not in self._generated:
            # Codes made in inference mode could not be saved for a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self._generated[asked] = _apart(device, generate)
        return self._generated[asked]

    def train(self, mode: bool = True):
        self._generated = {}
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._generated = {}
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._generated = {}
        super()._load_from_state_dict(*args, **kwargs)


def _apart(device: torch.device, generate: Callable[[], Tensor]) -> Tensor:
    # Codes are compared in float32 or better; and a kept codebook must not depend on who asked first.
    with torch.autocast(device.type, enabled=False):
        return generate()


def _same(sources: list[tuple[Tensor, int | None]], earlier: list[tuple[Tensor, int | None]]) -> bool:
    # The tensors themselves are compared: an id may be that of an earlier one that is gone.
    return len(sources) == len(earlier) and all(a is b and v == w for (a, v), (b, w) in zip(sources, earlier))


def _version(tensor: Tensor) -> int | None:
    """How often it was written in place; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version
