"""FSQ against the original: results, gradients and methods, over its settings; and the swap by accelerate."""

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import FSQ

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "plain": dict(levels=[8, 5, 5, 5]),
    "projected": dict(levels=(7, 4, 3), dim=10),
    "without bias": dict(levels=[5, 5], dim=6, projection_has_bias=False),
    "codebooks": dict(levels=[4, 3], num_codebooks=3),
    "projected codebooks": dict(levels=[5, 4], num_codebooks=2, dim=9),
    "kept dimension": dict(levels=[5, 4], keep_num_codebooks_dim=True),
    "symmetric": dict(levels=[2, 3, 4, 9], preserve_symmetry=True),
    "clamped": dict(levels=[8, 5, 6], bound_hard_clamp=True),
    "clamped, symmetric": dict(levels=[8, 5, 2], bound_hard_clamp=True, preserve_symmetry=True),
    "rotated": dict(levels=[5, 5, 5], orthogonal_rotation=True),
    "rotated codebooks": dict(levels=[6, 6], orthogonal_rotation=True, num_codebooks=2, dim=7, preserve_symmetry=True),
    "noisy": dict(levels=[4, 5], preserve_symmetry=True, noise_dropout=0.5),
    "no indices": dict(levels=[5, 7], dim=3, return_indices=False),
    "scale": dict(levels=[5, 7], scale=2.0),
}


def pair(settings):
    torch.manual_seed(3)
    original, ours = peer.FSQ(**settings), FSQ(**settings)
    ours.load_state_dict(original.state_dict())
    assert set(ours.state_dict()) == set(original.state_dict())
    return original, ours


@pytest.mark.parametrize("layout", ["rows", "channel first", "image", "volume"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_and_gradients_equal_the_original(settings, layout, assert_same):
    original, ours = pair(settings | dict(channel_first=layout == "channel first"))
    dim = original.dim
    shape = {"rows": (3, 11, dim), "channel first": (3, dim, 11), "image": (2, dim, 3, 4), "volume": (2, dim, 2, 3, 4)}[layout]
    x = 1.5 * torch.randn(shape)
    assert_same(original, ours, x, steps=1)
    quantized, indices = ours.eval()(x)
    if settings.get("return_indices", True):
        assert indices.dtype == original(x)[1].dtype == torch.int32
        assert torch.equal(ours.indices_to_codes(indices), quantized)
        expected = original.indices_to_codes(indices)
        torch.testing.assert_close(quantized, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_methods(settings):
    original, ours = pair(settings)
    z = 2 * torch.randn(4, 9, original.codebook_dim)
    if original.preserve_symmetry:
        torch.testing.assert_close(ours.symmetry_preserving_bound(z), original.symmetry_preserving_bound(z))
    else:
        for hard_clamp in (False, True):
            torch.testing.assert_close(ours.bound(z, hard_clamp=hard_clamp), original.bound(z, hard_clamp=hard_clamp))
    torch.testing.assert_close(ours.quantize(z), original.quantize(z))
    assert ours.quantize(z.bfloat16()).dtype == torch.bfloat16
    if original.return_indices:
        indices = torch.arange(ours.codebook_size)
        assert ours.codebook_size == original.codebook_size
        torch.testing.assert_close(ours.implicit_codebook, original.implicit_codebook)
        assert torch.equal(ours.indices_to_level_indices(indices), original.indices_to_level_indices(indices))
        codes = ours.implicit_codebook
        if original.orthogonal_rotation:
            codes = codes @ ours.orthogonal_rot.T
        else:
            assert torch.equal(original.codes_to_indices(codes), indices.int())
        found = ours.codes_to_indices(codes)
        assert found.dtype == torch.int32 and torch.equal(found, indices.int())


def test_gradient_of_decoding():
    original, ours = pair(dict(levels=[5, 4], dim=3))
    for module in (original, ours):
        module.indices_to_codes(torch.arange(20).view(2, 10)).square().sum().backward()
    for a, b in zip(ours.project_out.parameters(), original.project_out.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_noise_falls_on_the_share_that_was_asked_for():
    ours = FSQ([5, 5], preserve_symmetry=True, noise_dropout=0.1)
    x = 0.3 * torch.randn(2, 5000, 2)
    noisy, indices = ours(x)
    share = (noisy != ours.indices_to_codes(indices)).float().mean()
    assert 0.08 < share < 0.12
    assert torch.equal(ours.eval()(x)[0], ours.indices_to_codes(indices))


def test_a_row_that_is_not_finite_is_left_out():
    ours = FSQ([5, 4], dim=3)
    x = torch.randn(1, 4, 3)
    x[0, 1, 0] = torch.nan
    quantized, indices = ours(x)
    quantized.sum().backward()
    assert indices[0, 1] == -1 and not quantized[0, 1].any()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
    assert torch.equal(ours.indices_to_codes(indices), quantized)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    ours = FSQ([5, 4], dim=3).to(dtype)
    quantized, indices = ours(torch.randn(2, 5, 3, dtype=dtype))
    assert quantized.dtype == dtype and torch.equal(ours.indices_to_codes(indices), quantized)


@pytest.mark.parametrize("arguments", [dict(force_quantization_f32=False), dict(allowed_dtypes=(torch.bfloat16,))])
def test_what_is_not_supported_says_so(arguments):
    with pytest.raises(NotImplementedError, match=next(iter(arguments))):
        FSQ([5, 5], **arguments)
    with pytest.raises(NotImplementedError, match="eps"):
        FSQ([5, 5]).bound(torch.zeros(2, 2), eps=1e-2)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("levels", dict(levels=[2, 5])),
        ("levels", dict(levels=[2**16, 2**16])),
        ("noise_dropout", dict(levels=[5], noise_dropout=0.1)),
        ("keep_num_codebooks_dim", dict(levels=[5], num_codebooks=2, keep_num_codebooks_dim=False)),
    ],
)
def test_arguments_that_do_not_fit(name, arguments):
    with pytest.raises(ValueError, match=name):
        FSQ(**arguments)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_swaps_the_original(settings):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Identity(), peer.FSQ(**settings)).eval()
    x = torch.randn(2, 9, model[1].dim)
    expected, parameters = model(x), list(model.parameters())
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], FSQ) and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for found, value in zip(model(x), expected, strict=True):
        assert value is None and found is None or torch.allclose(found, value, rtol=1e-5, atol=1e-6)
    vqkit.restore(model)
    assert type(model[1]) is peer.FSQ


def test_accelerate_says_why_it_does_not_swap():
    report = vqkit.accelerate(nn.Sequential(peer.FSQ([5, 5], force_quantization_f32=False)))
    assert not report.replaced and "force_quantization_f32" in str(report)
