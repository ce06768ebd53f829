"""VectorQuantize against the original: results, gradients and what is learned, over its settings; and the swap by accelerate."""

import copy

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import VectorQuantize

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "plain": {},
    "straight-through": dict(rotation_trick=False),
    "cosine": dict(use_cosine_sim=True),
    "cosine, straight-through": dict(use_cosine_sim=True, rotation_trick=False),
    "factorised": dict(codebook_dim=4),
    "layer norm": dict(codebook_dim=4, layernorm_after_project_in=True),
    "heads": dict(heads=2, codebook_dim=6),
    "separate heads": dict(heads=3, codebook_dim=4, separate_codebook_per_head=True),
    "slow": dict(decay=0.99, eps=1e-3, commitment_weight=0.3),
    "learned": dict(learnable_codebook=True, ema_update=False),
    "optimistic": dict(learnable_codebook=True, ema_update=False, sync_update_v=0.4, rotation_trick=False),
    "orthogonal": dict(orthogonal_reg_weight=10.0, ema_update=False),
    "diverse": dict(codebook_diversity_loss_weight=0.7, codebook_diversity_temperature=3.0),
    "cross-entropy": dict(commitment_use_cross_entropy_loss=True),
    "affine": dict(affine_param=True),
    "manual": dict(manual_ema_update=True),
    "no commitment": dict(commitment_weight=0.0),
}


def pair(settings, dim=12, size=20):
    """The original and ours, with the same state."""
    torch.manual_seed(3)
    original = peer.VectorQuantize(dim=dim, codebook_size=size, **settings)
    ours = VectorQuantize(dim=dim, codebook_size=size, **settings)
    ours.load_state_dict(original.state_dict())
    assert set(ours.state_dict()) == set(original.state_dict())
    return original, ours


def run(module, x, **arguments):
    x = x.clone().requires_grad_()
    quantized, indices, loss = module(x, **arguments)
    module.zero_grad()
    (quantized.square().mean() + loss.sum()).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return quantized.detach(), indices, loss.detach(), x.grad, gradients


def compare(original, ours, x, **arguments):
    expected, found = run(original, x, **arguments), run(ours, x, **arguments)
    assert torch.equal(found[1], expected[1])
    for a, b in zip((found[0], *found[2:4]), (expected[0], *expected[2:4])):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for name in expected[4].keys() | found[4].keys():
        a, b = (grads.get(name) for grads in (found[4], expected[4]))
        torch.testing.assert_close(a if a is not None else torch.zeros_like(b), b if b is not None else torch.zeros_like(a), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_and_eval_equal_the_original(settings):
    original, ours = pair(settings)
    generator = torch.Generator().manual_seed(5)
    # The original writes its codes before the backward pass of losses over all distances; their gradients are right while it is frozen.
    frozen = {"freeze_codebook": True} if settings.keys() & {"codebook_diversity_loss_weight", "commitment_use_cross_entropy_loss"} else {}
    for _ in range(4):
        compare(original, ours, torch.randn(3, 7, 12, generator=generator), **frozen)
    for name, value in original.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    original.eval(), ours.eval()
    x = torch.randn(3, 7, 12, generator=generator)
    found = ours(x)
    # The original moves the batch's moments in eval mode too.
    if not settings.get("affine_param"):
        expected = original(x)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
        assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(ours.get_output_from_indices(found[1]), found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout, shape", [(dict(accept_image_fmap=True), (2, 12, 3, 4)), (dict(accept_3d_fmap=True), (2, 12, 2, 3, 4)),
                                           (dict(channel_last=False), (2, 12, 5)), ({}, (5, 12))])
def test_layouts(layout, shape):
    original, ours = pair(layout | dict(rotation_trick=False))
    compare(original, ours, torch.randn(shape))


@pytest.mark.parametrize("by", ["mask", "lens"])
def test_masks(by):
    original, ours = pair({})
    lens = torch.tensor([5, 2, 7])
    given = {"lens": lens} if by == "lens" else {"mask": torch.arange(7) < lens[:, None]}
    x = torch.randn(3, 7, 12)
    compare(original, ours, x, **given)
    assert (ours(x, **given)[1][1, 2:] == -1).all()


def test_frozen_topk_targets_and_breakdown():
    original, ours = pair({})
    x = torch.randn(3, 7, 12)
    before = copy.deepcopy(ours.state_dict())
    compare(original, ours, x, freeze_codebook=True)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    for found, expected in zip(ours(x, topk=3, freeze_codebook=True), original(x, topk=3, freeze_codebook=True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    targets = torch.randint(20, (3, 7))
    torch.testing.assert_close(ours(x, indices=targets)[1], original(x, indices=targets)[1], rtol=1e-4, atol=1e-6)
    *_, found = ours(x, return_loss_breakdown=True)
    *_, expected = original(x, return_loss_breakdown=True)
    assert found._fields == expected._fields
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_accumulated_updates_and_weights():
    original, ours = pair(dict(manual_ema_update=True))
    for _ in range(2):
        compare(original, ours, torch.randn(3, 7, 12), ema_update_weight=0.5)
    original._codebook.update_ema(), ours._codebook.update_ema()
    torch.testing.assert_close(ours.codebook, original.codebook, rtol=1e-4, atol=1e-6)


def test_a_row_that_is_not_finite_does_not_reach_the_codes():
    original, ours = pair({})
    x = torch.randn(2, 7, 12)
    x[0, 0, 0] = torch.nan
    original(x), ours(x)
    assert original.codebook.isnan().any() and ours.codebook.isfinite().all()


@pytest.mark.parametrize("arguments", [dict(sync_kmeans=False), dict(sync_codebook=False)])
def test_what_is_not_supported_says_so(arguments):
    with pytest.raises(NotImplementedError, match=next(iter(arguments))):
        VectorQuantize(dim=4, codebook_size=8, **arguments)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_swaps_the_original(settings):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(12, 12), peer.VectorQuantize(dim=12, codebook_size=20, **settings)).eval()
    x = torch.randn(2, 9, 12)
    if settings.get("affine_param"):
        model.train()(x)
        model.eval()
    expected = model(x)
    parameters = list(model.parameters())
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], VectorQuantize) and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for found, value in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    vqkit.restore(model)
    assert type(model[1]) is peer.VectorQuantize
