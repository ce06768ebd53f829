"""What is computed: the operators, each with its contract, reference, autograd and registration with torch.library."""

from vqkit.ops.aggregate import Graph, aggregate
from vqkit.ops.nearest import nearest_code, nearest_codes
from vqkit.ops.nearest_row import nearest_row
from vqkit.ops.sharded import gather_sharded_codes, sharded_nearest_codes
from vqkit.ops.soft_assignment import sample_codes, soft_assignment
from vqkit.ops.statistics import code_counts, code_statistics, ema_update
from vqkit.ops.straight_through import straight_through

__all__ = [
    "Graph",
    "aggregate",
    "code_counts",
    "code_statistics",
    "ema_update",
    "gather_sharded_codes",
    "nearest_code",
    "nearest_codes",
    "nearest_row",
    "sample_codes",
    "sharded_nearest_codes",
    "soft_assignment",
    "straight_through",
]
