"""BEST-RQ: labels against their definition, that nothing changes or learns, several codebooks, masks, dtypes, bad input."""

import copy

import pytest
import torch
from torch.nn.functional import layer_norm, normalize

from vqkit.quantizers import RandomProjectionQuantizer


@pytest.mark.parametrize("codebooks", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_labels_follow_the_definition(codebooks, norm):
    quantizer = RandomProjectionQuantizer(12, 40, 5, num_codebooks=codebooks, norm=norm)
    x = 3 * torch.randn(2, 30, 12) + 1
    wide = x.double()
    wide = layer_norm(wide, (12,)) if norm else wide
    labels = []
    for projection, codes in zip(quantizer.projections.double(), quantizer.codes.double()):
        labels.append(torch.cdist(normalize(wide @ projection, dim=-1), normalize(codes, dim=-1)).argmin(-1))
    labels = torch.stack(labels, -1) if codebooks > 1 else labels[0]
    found = quantizer(x)
    assert found.dtype == torch.int64 and torch.equal(found, labels) and torch.equal(quantizer.encode(x), found)
    assert quantizer.codebook_sizes == (40,) * codebooks and quantizer.selections == (1,) * codebooks
    torch.testing.assert_close(quantizer.project(x)[..., 0, :], normalize(wide @ quantizer.projections[0].double(), dim=-1).float())


def test_the_start():
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(60, 500, 20, num_codebooks=4)
    assert abs(quantizer.projections.std().item() - (2 / 80) ** 0.5) < 0.005
    torch.testing.assert_close(quantizer.codes.norm(dim=-1), torch.ones(4, 500))
    assert quantizer.codes.mean((0, 1)).abs().max() < 0.02
    usage = [len(column.unique()) / 500 for column in quantizer(torch.randn(5000, 60)).T]
    assert min(usage) > 0.9, "labels are spread over the codes"


def test_nothing_is_learned_and_all_is_in_the_state():
    quantizer = RandomProjectionQuantizer(8, 16, 4, num_codebooks=2)
    before = copy.deepcopy(quantizer.state_dict())
    x = torch.randn(20, 8, requires_grad=True)
    labels = quantizer(x)
    assert not list(quantizer.parameters()) and not quantizer.project(x).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    twin = RandomProjectionQuantizer(8, 16, 4, num_codebooks=2)
    twin.load_state_dict(before)
    assert torch.equal(twin(x), labels) and torch.equal(quantizer.eval()(x), labels)


def test_labels_do_not_depend_on_scale_and_shift_with_norm():
    quantizer, x = RandomProjectionQuantizer(8, 16, 4), torch.randn(50, 8)
    assert (quantizer(100 * x + 7) == quantizer(x)).float().mean() > 0.98
    assert torch.equal(RandomProjectionQuantizer(8, 16, 4, norm=False).eval().encode(torch.zeros(3, 8)), torch.zeros(3, dtype=torch.int64))


def test_labels_do_not_depend_on_the_dtype_of_the_model():
    quantizer, x = RandomProjectionQuantizer(8, 64, 4), torch.randn(200, 8).bfloat16()
    labels = quantizer(x)
    assert torch.equal(quantizer(x.float()), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), labels)
    assert torch.equal(quantizer.bfloat16()(x), labels)
    assert quantizer.codes.dtype == torch.float32


@pytest.mark.parametrize("codebooks", [1, 3])
def test_masked_and_bad_rows_have_no_label(codebooks):
    quantizer = RandomProjectionQuantizer(8, 16, 4, num_codebooks=codebooks)
    x, mask = torch.randn(4, 9, 8), torch.rand(4, 9) > 0.3
    labels = quantizer(x)
    bad = x.clone()
    bad[~mask] = torch.nan
    bad[0, 0, 3] = torch.inf
    expected = mask.clone()
    expected[0, 0] = False
    for found in (quantizer(bad), quantizer(bad, mask)):
        assert (found[~expected] == -1).all() and torch.equal(found[expected], labels[expected])


@pytest.mark.parametrize("codebooks", [1, 3])
def test_decode_gives_the_codes(codebooks):
    quantizer = RandomProjectionQuantizer(8, 16, 4, num_codebooks=codebooks, channel_first=True)
    labels = quantizer(torch.randn(2, 8, 5), torch.arange(10).view(2, 5) > 0)
    vectors = quantizer.decode(labels).movedim(1, -1).unflatten(-1, (codebooks, 4))
    columns = labels.view(2, 5, codebooks)
    for number in range(codebooks):
        expected = quantizer.codes[number][columns[..., number].clamp(min=0)]
        expected[0, 0] = 0
        assert torch.equal(vectors[..., number, :], expected)


@pytest.mark.parametrize("shape", [(8,), (0, 8)])
def test_single_and_empty(shape):
    assert RandomProjectionQuantizer(8, 16, 4)(torch.randn(shape)).shape == shape[:-1]
    assert RandomProjectionQuantizer(8, 16, 4, num_codebooks=2)(torch.randn(shape)).shape == (*shape[:-1], 2)


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    quantizer, x = RandomProjectionQuantizer(8, 16, 4, num_codebooks=2), torch.randn(20, 8)
    assert torch.equal(torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x), quantizer(x))


@pytest.mark.parametrize("name", ["dim", "codebook_size", "codebook_dim", "num_codebooks"])
def test_bad_arguments_are_named(name):
    with pytest.raises(ValueError, match=f"{name}: .*0"):
        RandomProjectionQuantizer(**{"dim": 4, "codebook_size": 8} | {name: 0})


def test_bad_input_is_named():
    quantizer = RandomProjectionQuantizer(4, 8, num_codebooks=2)
    with pytest.raises(ValueError, match="x: expected floating point .*D = 4"):
        quantizer(torch.randn(3, 5))
    with pytest.raises(ValueError, match="indices: expected a last dimension of 2"):
        quantizer.decode(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(IndexError, match="indices: .*8"):
        quantizer.decode(torch.tensor([[8, 0]]))
