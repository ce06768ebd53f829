"""The result of a quantizer is a tuple that others may copy, pickle, rebuild and map over."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.utils import _apply_to_tensors
from torch.utils import _pytree as pytree

from vqkit.quantizers import ProductQuantizer, Quantized, Quantizer


@pytest.fixture(params=["one", "product"])
def result(request):
    quantizer = Quantizer(6, 5) if request.param == "one" else ProductQuantizer([Quantizer(3, 5, top_k=2), Quantizer(3, 4)])
    with torch.no_grad():
        return quantizer(torch.randn(7, 6))


def through_torch_save(result):
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda r: pickle.loads(pickle.dumps(r)), through_torch_save])
def test_copies_keep_everything(result, copied):
    twin = copied(result)
    assert type(twin) is Quantized and type(twin.parts) is tuple
    left, right = (pytree.tree_leaves(r) for r in (twin, result))
    assert all(torch.equal(a, b) if a is not None else b is None for a, b in zip(left, right, strict=True))
    assert twin.usage == result.usage and twin.perplexity == result.perplexity and list(twin.losses) == list(result.losses)


@pytest.mark.parametrize("rebuilt", [lambda r: type(r)(t + 1 for t in r), lambda r: _apply_to_tensors(lambda t: t + 1, r)])
def test_wrappers_rebuild_the_triple(result, rebuilt):
    twin = rebuilt(result)
    assert type(twin) is Quantized and all(torch.equal(a, b + 1) for a, b in zip(twin, result, strict=True))
    assert twin.quantized is twin[0] and twin.loss is twin[2] and twin.losses is None


def test_trees_map_over_all_tensors(result):
    doubled = pytree.tree_map_only(torch.Tensor, lambda t: 2 * t, result)
    assert torch.equal(doubled.loss, 2 * result.loss) and doubled.losses["commitment"] == 2 * result.losses["commitment"]
    assert pytree.tree_map(lambda _: None, result).loss is None


def test_anything_but_three_is_an_error():
    with pytest.raises(ValueError, match="unpack"):
        Quantized([torch.zeros(1)])
