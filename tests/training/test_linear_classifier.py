"""The linear classifier is at the optimum of its objective, as other optimisers find it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from training.linear_classifier import LinearClassifier


def drawn(count: int = 120, dim: int = 5, classes: int = 4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    scales = torch.logspace(-3, 3, dim)
    return (2 * centres[labels] + torch.randn(count, dim, generator=generator)) * scales + 10 * scales, labels


def objective(x: np.ndarray, labels: np.ndarray, classes: int, penalty: float):
    def value(parameters: np.ndarray) -> float:
        weight, bias = np.split(parameters, [x.shape[1] * classes])
        weight = weight.reshape(x.shape[1], classes)
        logits = x @ weight + bias
        logits -= logits.max(1, keepdims=True)
        likelihood = logits[np.arange(len(x)), labels] - np.log(np.exp(logits).sum(1))
        return -likelihood.mean() + penalty / 2 * (weight**2).sum()

    return value


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_it_reaches_the_minimum_that_scipy_finds(penalty):
    features, labels = drawn()
    fitted = LinearClassifier.fit(features, labels, 4, penalty)
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    value = objective(x, labels.numpy(), 4, penalty)
    found = value(torch.cat((fitted.weight.flatten(), fitted.bias)).numpy())
    best = minimize(value, np.zeros(5 * 4 + 4), method="BFGS", options={"gtol": 1e-7}).fun
    assert found <= best + 1e-9 and found < np.log(4)


def test_the_scale_of_features_changes_nothing():
    features, labels = drawn()
    one, other = LinearClassifier.fit(features, labels, 4), LinearClassifier.fit(features.double() * 1e6 - 3, labels, 4)
    assert torch.allclose(one.weight, other.weight, atol=1e-4)
    assert (one.predict(features) == other.predict(features.double() * 1e6 - 3)).all()
    assert (one.predict(features) == labels).double().mean() > 0.8


def test_a_class_without_examples_is_never_told_and_constant_features_say_nothing():
    features, labels = drawn()
    padded = torch.cat((features, torch.full((len(features), 2), 7.3)), 1)
    fitted = LinearClassifier.fit(padded, labels, 6)
    assert (fitted.weight[-2:] == 0).all() and int(fitted.predict(padded).max()) < 4
    assert (fitted.predict(padded) == LinearClassifier.fit(features, labels, 6).predict(features)).all()


def test_two_fits_are_the_same_bits():
    features, labels = drawn()
    one, other = (LinearClassifier.fit(features, labels, 4) for _ in range(2))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("features, labels, message", [
    (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "N at least 1"),
    (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"got \(2, 3\) and \(3,\)"),
    (torch.zeros(2, 3), torch.tensor([0, 2]), r"labels: expected 0 .. 1, got 0 .. 2"),
    (torch.zeros(2, 3), torch.tensor([-1, 1]), r"labels: expected 0 .. 1, got -1 .. 1"),
])
def test_what_it_refuses(features, labels, message):
    with pytest.raises(ValueError, match=message):
        LinearClassifier.fit(features, labels, 2)
