"""What holds for every class of vector-quantize-pytorch: its arguments and their defaults, its first weights, and what is not here."""

import importlib
import inspect

import pytest
import torch

import vqkit.compat.vector_quantize_pytorch as ours

peer = pytest.importorskip("vector_quantize_pytorch")

_ROWS = dict(dim=6, codebook_size=10)
STARTS = {
    "VectorQuantize": [_ROWS, _ROWS | dict(codebook_dim=3, heads=2, separate_codebook_per_head=True), _ROWS | dict(use_cosine_sim=True)],
    "ResidualVQ": [_ROWS | dict(num_quantizers=3, codebook_dim=4), _ROWS | dict(num_quantizers=3, implicit_neural_codebook=True)],
    "GroupedResidualVQ": [_ROWS | dict(num_quantizers=2, groups=2)],
    "SimVQ": [_ROWS | dict(frozen_codebook_dim=4)],
    "FSQ": [dict(levels=[5, 5], dim=6, orthogonal_rotation=True)],
    "LFQ": [dict(dim=6, codebook_size=16, orthogonal_rotation=True), dict(dim=6, codebook_size=16, cosine_sim_project_in=True)],
    "RandomProjectionQuantizer": [_ROWS | dict(codebook_dim=4, num_codebooks=2)],
}


def test_every_class_is_here():
    assert STARTS.keys() == set(ours.__all__)


@pytest.mark.parametrize("name, settings", [(name, settings) for name, many in STARTS.items() for settings in many], ids=str)
def test_the_same_seed_gives_the_same_weights(name, settings):
    states = []
    for package in (peer, ours):
        torch.manual_seed(5)
        states.append(getattr(package, name)(**settings).state_dict())
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[1], dict(states[0]))


def defaults(function):
    """The names that a call may have, each with its default; a module by its class."""
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not argument.VAR_KEYWORD:
            found[name] = argument.default
    return found


@pytest.mark.parametrize("method", ["__init__", "forward"])
@pytest.mark.parametrize("name", STARTS)
def test_arguments_stand_in_the_order_and_with_the_defaults_of_the_original(name, method):
    theirs, own = (defaults(getattr(getattr(package, name), method)) for package in (peer, ours))
    assert list(own)[: len(theirs)] == list(theirs)
    # The identity by another name.
    same = {"straight_through_activation": None, "init_fn": None, "mlp_kwargs": None}
    assert {argument: own[argument] for argument in theirs if argument not in same} == {
        argument: value for argument, value in theirs.items() if argument not in same
    }


def test_what_is_not_here_is_named_with_what_is_near():
    missing = {name for name in vars(peer) if inspect.isclass(getattr(peer, name))} - set(ours.__all__)
    assert missing
    for name in missing:
        with pytest.raises(ImportError, match=f"^{name}: vqkit has no such class"):
            exec(f"from vqkit.compat.vector_quantize_pytorch import {name}")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        importlib.import_module("vqkit.compat.vector_quantize_pytorch").nonsense
