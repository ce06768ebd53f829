"""What all operators share: the backend that is asked for, and the doctor's report of it."""

import pytest
import torch

import vqkit
from vqkit.__main__ import report
from vqkit.backend import BackendError
from vqkit.ops import Graph, aggregate, straight_through
from vqkit.ops import operator as operators


@pytest.fixture
def calls(monkeypatch):
    """What was chosen, call by call."""
    chosen, choose = [], operators.backends.choose

    def note(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(operators.backends, "choose", note)
    return chosen


@pytest.mark.parametrize("compiled", [False, True])
def test_a_requested_backend_covers_the_backward_pass(calls, compiled):
    graph, indices = Graph.from_edges([[0, 1], [1, 2]], 5), torch.tensor([0, 2, 1, 1, 0])

    def loss(latents, codes):
        quantized, commitment, codebook = straight_through(aggregate(graph, latents), codes, indices)
        return quantized.sum() + commitment + codebook

    loss = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    for name in ("reference", None):
        latents, codes = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        if name is None:
            result = loss(latents, codes)
        else:
            with vqkit.use_backend(name):
                result = loss(latents, codes)
        forward = list(calls)
        result.backward()
        assert len(calls) == 4 and calls[2:] == forward[::-1] and name in (None, *forward)
        calls.clear()


def test_an_unknown_backend_is_refused_before_anything_is_computed(calls):
    latents = torch.zeros(2, 3)
    with pytest.raises(BackendError, match="backend: .*abacus"):
        straight_through(latents, latents, torch.tensor([0, 1]), backend="abacus")
    assert calls == []


def test_the_doctor_reports_an_unknown_backend(monkeypatch):
    monkeypatch.setenv("VQKIT_BACKEND", "bogus")
    text = report()
    assert "VQKIT_BACKEND: expected one of triton, cuda, native, reference, got 'bogus'" in text and "serves" in text
