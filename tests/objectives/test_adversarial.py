"""Adversarial losses and their adaptive weight, by hand and over two ranks."""

import os
import subprocess
import sys

import pytest
import torch

from vqkit.objectives import (
    AdversarialLoss,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
)

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.5])


def test_hinge_by_hand():
    torch.testing.assert_close(hinge_discriminator_loss(REAL, FAKE), torch.tensor(0.5 * (2.5 / 3 + 2.5 / 3)))
    torch.testing.assert_close(hinge_generator_loss(FAKE), torch.tensor(2.5 / 3))


def test_non_saturating_is_cross_entropy():
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = 0.5 * (entropy(REAL, torch.ones(3)) + entropy(FAKE, torch.zeros(3)))
    torch.testing.assert_close(non_saturating_discriminator_loss(REAL, FAKE), expected)
    torch.testing.assert_close(non_saturating_generator_loss(FAKE), entropy(FAKE, torch.ones(3)))
    assert non_saturating_generator_loss(torch.tensor([-1e4])).isfinite()


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_both_sides_pull_where_they_should(kind):
    losses = AdversarialLoss(kind)
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    losses.discriminator(real, fake).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    layer = torch.ones(1, requires_grad=True)
    fake = layer * torch.zeros(4) + layer
    term, _ = losses.generator(fake, layer.square().sum(), layer)
    (gradient,) = torch.autograd.grad(term, layer)
    assert gradient < 0


def test_adaptive_weight_by_hand():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    # gradients (6, 8) and (0, 2): norms 10 and 2
    weight = adaptive_weight(layer.square().sum(), 2 * layer[1], layer)
    torch.testing.assert_close(weight, torch.tensor(10 / (2 + 1e-4)))
    assert not weight.requires_grad
    # both graphs are still there
    (layer.square().sum() + weight * layer[1]).backward()


def test_adaptive_weight_is_bounded():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    nothing = (layer * 0).sum()
    assert adaptive_weight(layer.square().sum(), nothing, layer) == 1e4
    assert adaptive_weight(nothing, layer.sum(), layer) == 0
    assert adaptive_weight(nothing, nothing, layer) == 0
    assert adaptive_weight(layer.square().sum(), nothing, layer, maximum=7) == 7


def test_generator_term_balances_the_gradients_at_the_last_layer():
    torch.manual_seed(0)
    layer = torch.randn(3, 5, requires_grad=True)
    x = torch.randn(8, 5)
    output = x @ layer.T
    reconstruction = (output - 1).square().mean()
    logits = output.sin().sum(1)
    term, parts = AdversarialLoss("hinge", weight=0.8).generator(logits, reconstruction, layer)
    (pull,) = torch.autograd.grad(term, layer, retain_graph=True)
    (nll,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    torch.testing.assert_close(pull.norm(), 0.8 * nll.norm(), rtol=1e-3, atol=0)
    torch.testing.assert_close(term, 0.8 * parts["adaptive_weight"] * parts["generator"])


def test_start():
    losses = AdversarialLoss(start=10)
    assert [losses.active(step) for step in (0, 9, 10, 11)] == [False, False, True, True]
    assert not AdversarialLoss(weight=0, start=0).active(5)


@pytest.mark.parametrize("arguments", [{"kind": "wasserstein"}, {"weight": -1}, {"start": -1}])
def test_arguments_that_do_not_fit(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdversarialLoss(**arguments)


RANK = """
import os, sys, torch, torch.distributed as dist
from vqkit.objectives import adaptive_weight
from vqkit.metrics import CodebookUsage
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
layer, x = torch.randn(3, 5, requires_grad=True), torch.randn(8, 5)
def weight(rows):
    output = rows @ layer.T
    return adaptive_weight(output.square().mean(), output.sin().mean(), layer)
shared = weight(x[rank * 4 : rank * 4 + 4])
usage = CodebookUsage((3, 2))
usage.add([torch.tensor([1, 0, rank]), torch.tensor([0, 2 * rank])])
total = usage.reduced()
dist.destroy_process_group()
torch.testing.assert_close(shared, weight(x), rtol=1e-5, atol=0)
assert [part.tolist() for part in total.counts] == [[2, 0, 1], [0, 2]], total.counts
assert usage.counts[0].tolist() == [1, 0, rank]
assert total.usage == 3 / 5
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_two_ranks_agree_with_one(tmp_path):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
