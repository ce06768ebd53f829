"""A linear classifier of features that are given: softmax regression, fitted to its optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearClassifier:
    """argmax_c (W standardized(x) + b)_c, by `fit`. mean, scale: float64 (D,); weight: float64 (D, C); bias: float64 (C,)."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int, penalty: float = 1e-3, steps: int = 300) -> LinearClassifier:
        """The minimum of mean cross-entropy + penalty / 2 |W|^2, of features scaled to mean 0 and variance 1.

        features: (N, D) of any float dtype; labels: int64 (N,) in 0 .. classes - 1. L-BFGS in float64 from W = 0, so the same features
        give the same classifier; at most `steps` iterations. No gradient. Raises ValueError for no features or labels out of range.
        Source: the linear probes of Radford et al., arXiv 2103.00020, section 3.2; the penalty is ours.
        """
        if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1]:
            raise ValueError(f"features, labels: expected (N, D) and (N,) with N at least 1, got {tuple(features.shape)} and {tuple(labels.shape)}")
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"labels: expected 0 .. {classes - 1}, got {int(labels.min())} .. {int(labels.max())}")
        x = features.detach().double()
        mean, scale = x.mean(0), x.std(0, correction=0)
        # a feature that never changes says nothing, and is not divided by nothing
        scale = torch.where(scale > 1e-12 * mean.abs().clamp(min=1.0), scale, 1.0)
        x = (x - mean) / scale
        weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
        bias = x.new_zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS((weight, bias), max_iter=steps, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-13,
                                      line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return cls(mean, scale, weight.detach(), bias.detach())

    def predict(self, features: Tensor) -> Tensor:
        """The classes of (N, D), int64 (N,)."""
        return (((features.double() - self.mean) / self.scale) @ self.weight + self.bias).argmax(1)
