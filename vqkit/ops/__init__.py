"""What is computed: the four operators, each with its contract, reference, autograd and registration with torch.library."""

from vqkit.ops.aggregate import Graph, aggregate
from vqkit.ops.nearest import nearest_code, nearest_codes
from vqkit.ops.statistics import code_counts, code_statistics, ema_update
from vqkit.ops.straight_through import straight_through

__all__ = [
    "Graph",
    "aggregate",
    "code_counts",
    "code_statistics",
    "ema_update",
    "nearest_code",
    "nearest_codes",
    "straight_through",
]
