"""The least time that the work of an operator takes on a device whose ceilings were measured.

T = max(operations of the tensor cores / their rate, operations of the ALUs / their rate, bytes / bandwidth). Bytes count every
input read once and every output written once. Consecutive operators have the sum of their floors.
"""

from dataclasses import dataclass

import torch

from benchmarks.timing import measure

# ALU operations for each pair of a latent and a code: a maximum, and the share of each in finding its index.
PAIR_OPERATIONS = 1.25
# Minimum and maximum run at half of the 128 lanes of a multiprocessor.
_LANES = 64
# Of a Hopper card under load, where PyTorch does not tell.
_CLOCK_KHZ = 1_980_000
_INDEX = 8


@dataclass(frozen=True)
class Work:
    """What one operator has to do: bf16 operations of the tensor cores, operations of the ALUs, bytes of memory."""

    tensor: float = 0.0
    alu: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Ceilings:
    """Rates a second: bytes copied (read and written), bf16 operations of a large product, ALU operations (None: not known)."""

    bandwidth: float
    tensor: float
    alu: float | None

    def floor(self, *works: Work) -> float:
        """Seconds that these pieces of work take at least, one after the other."""
        return sum(
            max(work.tensor / self.tensor, work.memory / self.bandwidth, work.alu / self.alu if self.alu else 0.0) for work in works
        )


def measured_ceilings(device: torch.device) -> Ceilings:
    """Time a copy and a bf16 product of random matrices; the rate of the ALUs is computed."""
    on_gpu = device.type == "cuda"
    size, side, seconds = (1 << 31, 8192, 1.0) if on_gpu else (1 << 24, 128, 0.05)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = measure([lambda: target.copy_(source)], device, seconds).median
    del source, target
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = measure([lambda: left @ right], device, seconds).median
    alu = None
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        alu = _LANES * properties.multi_processor_count * getattr(properties, "clock_rate", _CLOCK_KHZ) * 1e3
    return Ceilings(2 * size / copy, 2 * side**3 / product, alu)


def search(n: int, size: int, dim: int, element: int, k: int = 1) -> Work:
    """Products of N x K pairs over D rounded up to 16: one pass of bf16, three where float32 is split; a maximum of each pair.

    k > 1 has the same floor: that its ranking takes more is not counted.
    """
    passes = 1 if element == 2 else 3
    padded = -(-dim // 16) * 16
    pairs = n * size
    return Work(2 * pairs * padded * passes, pairs * PAIR_OPERATIONS, (n + size) * dim * element + n * k * _INDEX)


def straight_through(n: int, size: int, dim: int, element: int) -> Work:
    """Forward reads latents and writes the output; backward reads latents and gradient and writes one; the codes come along."""
    return Work(memory=5 * n * dim * element + 2 * size * dim * element + 2 * n * _INDEX)


def statistics(n: int, size: int, dim: int, element: int) -> Work:
    """Latents and indices are read, sums (float32) and counts written."""
    return Work(memory=n * (dim * element + _INDEX) + size * (4 * dim + _INDEX))


def aggregation(nodes: int, entries: int, width: int, passes: int = 2) -> Work:
    """Forward and backward: features read and written, and the graph read; that neighbours are read again is not counted."""
    return Work(memory=passes * (2 * nodes * width * 4 + entries * (_INDEX + 4) + nodes * _INDEX))
