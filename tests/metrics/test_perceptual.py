"""LPIPS is a metric as well as a loss."""

import vqkit.metrics
from vqkit.objectives import LPIPS


def test_lpips_is_among_the_metrics():
    # One implementation: `tests/objectives/test_perceptual.py` compares it with torchmetrics.
    assert vqkit.metrics.LPIPS is LPIPS and "LPIPS" in vqkit.metrics.__all__
