"""Two modules, one of another library and ours, on the same input: results, gradients and what was learned."""

import pytest
import torch
from torch.utils import _pytree as pytree


def _dense(value):
    value = torch.as_tensor(value).detach()
    return (value.to_dense() if value.is_sparse else value).double()


def _trace(module, x, call, seed):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    results = pytree.tree_leaves(call(module, x))
    generator = torch.Generator().manual_seed(1)
    total = x.sum() * 0
    for value in results:
        if isinstance(value, torch.Tensor) and value.requires_grad:
            total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    learned = {name: value for name, value in module.state_dict(keep_vars=True).items() if value.requires_grad}
    gradients = torch.autograd.grad(total, [x, *learned.values()], allow_unused=True)
    named = dict(zip(["x", *learned], gradients))
    return results, {name: value for name, value in named.items() if value is not None}


@pytest.fixture
def assert_same():
    def check(theirs, ours, x, *, call=lambda module, x: module(x), learns=True, steps=3):
        """Both from the same state: a few training steps, then eval mode."""
        ours.load_state_dict(theirs.state_dict())
        for training in [True] * steps + [False]:
            theirs.train(training), ours.train(training)
            (expected, expected_gradients), (got, gradients) = (_trace(module, x, call, 7) for module in (theirs, ours))
            assert len(expected) == len(got)
            for a, b in zip(expected, got):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(_dense(b), _dense(a), rtol=1e-4, atol=1e-5)
            for name in expected_gradients | gradients:
                zero = torch.zeros(())
                a, b = expected_gradients.get(name, zero), gradients.get(name, zero)
                torch.testing.assert_close(b.expand(a.shape) if b.ndim == 0 else b, a.expand(b.shape) if a.ndim == 0 else a, rtol=1e-4, atol=1e-5)
            state, own = theirs.state_dict(), ours.state_dict()
            assert state.keys() == own.keys()
            for name in state if learns else ():
                assert state[name].shape == own[name].shape
                torch.testing.assert_close(own[name], state[name], rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")

    return check
