"""LFQ against the original: results, losses, gradients and methods, over its settings; masks; and the swap by accelerate."""

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import LFQ

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "dim alone": dict(dim=5),
    "size alone": dict(codebook_size=64),
    "projected": dict(dim=9, codebook_size=16),
    "without bias": dict(dim=9, codebook_size=16, projection_has_bias=False),
    "projected all the same": dict(dim=4, codebook_size=16, has_projections=True),
    "cosine projection": dict(dim=9, codebook_size=16, cosine_sim_project_in=True),
    "scaled cosine projection": dict(dim=9, codebook_size=16, cosine_sim_project_in=True, cosine_sim_project_in_scale=3.0),
    "codebooks": dict(codebook_size=16, num_codebooks=3),
    "codebooks of dim": dict(dim=3, num_codebooks=2),
    "kept dimension": dict(dim=4, keep_num_codebooks_dim=True),
    "commitment": dict(dim=4, commitment_loss_weight=0.3, entropy_loss_weight=0.7, diversity_gamma=2.0),
    "no entropies": dict(dim=4, commitment_loss_weight=0.3, entropy_loss_weight=0.0),
    "scale": dict(dim=4, codebook_scale=0.5, commitment_loss_weight=0.2),
    "soft clamp": dict(dim=4, soft_clamp_input_value=1.5, commitment_loss_weight=0.2),
    "softplus": dict(dim=4, experimental_softplus_entropy_loss=True, entropy_loss_offset=2.0),
    "spherical": dict(dim=6, spherical=True, commitment_loss_weight=0.2),
    "spherical codebooks": dict(dim=7, codebook_size=16, num_codebooks=2, spherical=True, codebook_scale=2.0),
    "rotated": dict(dim=5, orthogonal_rotation=True),
    "rotated, spherical": dict(dim=9, codebook_size=16, num_codebooks=2, orthogonal_rotation=True, spherical=True, soft_clamp_input_value=2.0),
    "activation": dict(dim=4, straight_through_activation=lambda: nn.Tanh()),
    "learned activation": dict(dim=4, straight_through_activation=lambda: nn.PReLU()),
}


def made(cls, settings, **more):
    arguments = settings | more
    if "straight_through_activation" in arguments:
        arguments["straight_through_activation"] = arguments["straight_through_activation"]()
    return cls(**arguments)


def pair(settings, **more):
    torch.manual_seed(3)
    original, ours = (made(cls, settings, **more) for cls in (peer.LFQ, LFQ))
    ours.load_state_dict(original.state_dict())
    return original, ours


def gradient(module, x, **arguments):
    x = x.clone().requires_grad_()
    found, breakdown = module(x, return_loss_breakdown=True, **arguments)
    (found.quantized.square().sum() + found.entropy_aux_loss).backward()
    return found, breakdown, x.grad


@pytest.mark.parametrize("layout", ["rows", "channel first", "image"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_results_losses_and_gradients_equal_the_original(settings, layout, assert_same):
    original, ours = pair(settings, channel_first=True if layout == "channel first" else None)
    dim = original.dim
    x = torch.randn({"rows": (3, 11, dim), "channel first": (3, dim, 11), "image": (2, dim, 3, 4)}[layout])
    for inv_temperature in (10.0, 1.0):
        assert_same(original, ours, x, call=lambda module, x: module(x, inv_temperature, return_loss_breakdown=True), steps=1)
    # At the default temperature the original's softmax rounds its gradients to some 1e-5.
    runs = [gradient(module.train(), x) for module in (original, ours)]
    for a, b in zip((*runs[0][0], *runs[0][1]), (*runs[1][0], *runs[1][1]), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(runs[1][2], runs[0][2], rtol=1e-3, atol=1e-4)
    original.eval()
    found = ours.eval()(x)
    assert found._fields == original(x)._fields and found.indices.dtype == torch.int64
    assert torch.equal(ours.indices_to_codes(found.indices), found.quantized)
    torch.testing.assert_close(original.indices_to_codes(found.indices), found.quantized, rtol=1e-5, atol=1e-6)
    values = (module.indices_to_codes(found.indices, project_out=False) for module in (ours, original))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.codebook, original.codebook)
    bits = torch.randint(2, (3, ours.codebook_dim)).float()
    assert torch.equal(ours.bits_to_codes(bits), original.bits_to_codes(bits)) and ours.dtype == original.dtype


@pytest.mark.parametrize("settings", [dict(dim=4, commitment_loss_weight=0.5), dict(dim=9, codebook_size=8, num_codebooks=2)])
def test_a_mask_of_samples_equals_the_original(settings):
    original, ours = pair(settings)
    x, mask = torch.randn(3, 7, ours.dim), torch.tensor([True, False, True])
    (expected, terms, theirs), (found, own, gradients) = (gradient(module, x, mask=mask, inv_temperature=2.0) for module in (original, ours))
    for a, b in zip((*found, *own, gradients), (*expected, *terms, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["rows", "image", "image, flat mask"])
def test_a_mask_of_positions_gives_the_loss_of_the_others_alone(layout):
    original, ours = pair(dict(dim=4, commitment_loss_weight=0.5))
    x, mask = torch.randn(3, 4, 6), torch.rand(3, 6) < 0.6
    rows = x.movedim(1, -1)
    expected, terms = original(rows[mask][None], inv_temperature=2.0, return_loss_breakdown=True)
    whole = original(rows)
    if layout == "rows":
        found, own = ours(rows, inv_temperature=2.0, return_loss_breakdown=True, mask=mask)
    else:
        mask = mask if layout == "image, flat mask" else mask.view(3, 2, 3)
        found, own = ours(x.view(3, 4, 2, 3), inv_temperature=2.0, return_loss_breakdown=True, mask=mask)
    torch.testing.assert_close(found.entropy_aux_loss, expected.entropy_aux_loss)
    for a, b in zip(own, terms, strict=True):
        torch.testing.assert_close(a, b)
    # All rows are quantized.
    assert torch.equal(found.indices.reshape(3, 6), whole.indices)
    assert torch.equal(ours.indices_to_codes(found.indices), found.quantized)


def test_the_original_does_not_average_under_a_mask_of_positions():
    original, ours = pair(dict(dim=4))
    x, mask = torch.randn(3, 7, 4), torch.ones(3, 7, dtype=torch.bool)
    (_, wrong), (_, right), (_, unmasked) = (
        module(x, inv_temperature=1.0, return_loss_breakdown=True, mask=given) for module, given in ((original, mask), (ours, mask), (original, None))
    )
    torch.testing.assert_close(wrong.batch_entropy, wrong.per_sample_entropy)
    torch.testing.assert_close(right.batch_entropy, unmasked.batch_entropy)


def test_a_share_of_the_rows_estimates_the_entropy_of_all():
    _, ours = pair(dict(dim=6, frac_per_sample_entropy=0.2))
    x = torch.randn(2, 500, 6)
    draws = torch.stack([ours(x, 1.0, True)[1].per_sample_entropy for _ in range(20)])
    _, whole = pair(dict(dim=6))
    expected = whole(x, 1.0, True)[1].per_sample_entropy
    assert draws.std() > 0 and (draws.mean() - expected).abs() < 4 * draws.std() / 20**0.5
    assert ours(x[:1, :1], 1.0).entropy_aux_loss.isfinite()


def test_a_row_that_is_not_finite_has_no_part():
    _, ours = pair(dict(dim=9, codebook_size=16, commitment_loss_weight=1.0))
    x = torch.randn(1, 5, 9)
    x[0, 2, 1] = torch.nan
    found = ours(x)
    (found.quantized.sum() + found.entropy_aux_loss).backward()
    assert found.indices[0, 2] == -1 and not found.quantized[0, 2].any()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
    assert torch.equal(ours.indices_to_codes(found.indices), found.quantized)
    torch.testing.assert_close(found.entropy_aux_loss, ours(x[:, [0, 1, 3, 4]]).entropy_aux_loss)


def test_half_precision_input():
    ours = LFQ(dim=9, codebook_size=16).bfloat16()
    found = ours(torch.randn(2, 5, 9, dtype=torch.bfloat16))
    assert found.quantized.dtype == torch.bfloat16 and found.entropy_aux_loss.dtype == torch.float32
    assert torch.equal(ours.indices_to_codes(found.indices), found.quantized)


def test_what_is_not_supported_says_so():
    with pytest.raises(NotImplementedError, match="force_quantization_f32"):
        LFQ(dim=4, force_quantization_f32=False)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("codebook_size", {}),
        ("codebook_size", dict(codebook_size=10)),
        ("keep_num_codebooks_dim", dict(dim=4, num_codebooks=2, keep_num_codebooks_dim=False)),
        ("has_projections", dict(dim=5, codebook_size=16, has_projections=False)),
        ("soft_clamp", dict(dim=4, soft_clamp_input_value=0.5)),
        ("frac_per_sample_entropy", dict(dim=4, frac_per_sample_entropy=0.0)),
    ],
)
def test_arguments_that_do_not_fit(name, arguments):
    with pytest.raises(ValueError, match=name):
        LFQ(**arguments)


@pytest.mark.parametrize("mask", [torch.ones(3, 7), torch.ones(2, 7, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)])
def test_a_mask_that_does_not_fit(mask):
    with pytest.raises(ValueError, match="mask"):
        LFQ(dim=4)(torch.randn(3, 7, 4), mask=mask)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_swaps_the_original(settings):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Identity(), made(peer.LFQ, settings))
    x = torch.randn(2, 9, model[1].dim)
    expected, parameters = model(x), list(model.parameters())
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], LFQ) and {*map(id, model.parameters())} == {*map(id, parameters)}
    for found, value in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    vqkit.restore(model)
    assert type(model[1]) is peer.LFQ
