"""ResidualVQ and GroupedResidualVQ against the originals: results, gradients and what is learned, over their settings; and the swap."""

import copy
import inspect

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ

peer = pytest.importorskip("vector_quantize_pytorch")

SETTINGS = {
    "plain": {},
    "straight-through": dict(rotation_trick=False),
    "shared": dict(shared_codebook=True),
    "shared, learned": dict(shared_codebook=True, learnable_codebook=True, ema_update=False),
    "dropout": dict(quantize_dropout=True),
    "dropout in steps": dict(quantize_dropout=True, quantize_dropout_cutoff_index=1, quantize_dropout_multiple_of=2),
    "factorised": dict(codebook_dim=4),
    "sizes": dict(codebook_size=(5, 20, 9, 12), num_quantizers=None),
    "cosine": dict(use_cosine_sim=True),
    "cosine, shared, straight-through": dict(use_cosine_sim=True, shared_codebook=True, rotation_trick=False),
    "learned": dict(learnable_codebook=True, ema_update=False),
    "gradient of quantized": dict(learnable_codebook=True, ema_update=False, quant_grad_frac=0.3),
    "orthogonal": dict(orthogonal_reg_weight=10.0, ema_update=False),
    "affine": dict(affine_param=True),
    "implicit": dict(implicit_neural_codebook=True),
    "implicit, shared, narrow": dict(implicit_neural_codebook=True, shared_codebook=True, mlp_kwargs=dict(dim_hidden=5, depth=2)),
    "implicit, straight-through": dict(implicit_neural_codebook=True, rotation_trick=False, commitment_weight=0.3),
    "implicit, sizes": dict(implicit_neural_codebook=True, codebook_size=(5, 20, 9), num_quantizers=None),
    "manual": dict(manual_ema_update=True, decay=0.99),
}  # fmt: skip


def pair(settings, name="ResidualVQ", **more):
    """The original and ours, with the same state."""
    torch.manual_seed(3)
    given = dict(dim=12, num_quantizers=4, codebook_size=20) | settings | more
    original = getattr(peer, name)(**copy.deepcopy(given))
    ours = {"ResidualVQ": ResidualVQ, "GroupedResidualVQ": GroupedResidualVQ}[name](**given)
    ours.load_state_dict(original.state_dict())
    assert set(ours.state_dict()) == set(original.state_dict())
    return original, ours


def run(module, x, **arguments):
    x = x.clone().requires_grad_()
    results = module(x, **arguments)
    module.zero_grad()
    weights = torch.linspace(0.5, 2, results[2].numel()).view(results[2].shape)
    (results[0].square().mean() + (results[2] * weights).sum()).backward()
    learned = {key: value for key, value in module.state_dict(keep_vars=True).items() if value.requires_grad}
    gradients = {key: value.grad for key, value in {**learned, "x": x}.items() if value.grad is not None}
    return [value.detach() for value in results], gradients


@pytest.mark.parametrize("name", ["ResidualVQ", "GroupedResidualVQ"])
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_arguments_and_defaults_are_those_of_the_original(name, method):
    ours = {"ResidualVQ": ResidualVQ, "GroupedResidualVQ": GroupedResidualVQ}[name]
    expected, found = (inspect.signature(getattr(cls, method)).parameters for cls in (getattr(peer, name), ours))
    # A dict as a default is one for all.
    assert all(found[key].default == (value.default or None if key == "mlp_kwargs" else value.default) for key, value in expected.items())
    positional = [key for key, value in expected.items() if value.kind is value.POSITIONAL_OR_KEYWORD]
    assert positional == list(found)[: len(positional)]


def assert_close(found, expected, name=""):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


def compare(original, ours, x, **arguments):
    (expected, theirs), (found, own) = (run(module, x, **arguments) for module in (original, ours))
    assert torch.equal(found[1], expected[1])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    for name in theirs | own:
        a, b = own.get(name), theirs.get(name)
        assert_close(torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b, name)


def compare_state(original, ours):
    state = ours.state_dict()
    for name, value in original.state_dict().items():
        assert_close(state[name], value, name)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_and_eval_equal_the_original(settings):
    original, ours = pair(settings)
    generator = torch.Generator().manual_seed(5)
    # The original's codes from indices are not those of the affine map.
    given = {"return_all_codes": not settings.get("affine_param")}
    for seed in range(4):
        compare(original, ours, torch.randn(3, 7, 12, generator=generator), rand_quantize_dropout_fixed_seed=seed, **given)
    compare_state(original, ours)
    original.eval(), ours.eval()
    x = torch.randn(3, 7, 12, generator=generator)
    found = ours(x, return_all_codes=True)
    # The original moves the batch's moments in eval mode too.
    if not settings.get("affine_param"):
        for a, b in zip(found, original(x, return_all_codes=True), strict=True):
            assert_close(a, b)
        assert_close(ours.get_output_from_indices(found[1]), original.get_output_from_indices(found[1]))
    for a, b in zip(ours.codebooks, original.codebooks, strict=True):
        assert_close(a, b)
    assert_close(ours.get_output_from_indices(found[1]), found[0])


@pytest.mark.parametrize(
    "settings", [{}, dict(codebook_dim=4), dict(return_zeros_for_masked_padding=False), dict(shared_codebook=True)], ids=str
)
def test_masks_and_frozen_steps(settings):
    original, ours = pair(settings)
    mask = torch.arange(7) < torch.tensor([5, 2, 7])[:, None]
    for _ in range(3):
        compare(original, ours, torch.randn(3, 7, 12), mask=mask)
    assert (ours(torch.randn(3, 7, 12), mask=mask)[1][1, 2:] == -1).all()
    before = copy.deepcopy(ours.state_dict())
    ours(torch.randn(3, 7, 12), freeze_codebook=True)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    compare(*pair(settings), torch.randn(3, 7, 12), freeze_codebook=True)


def test_cosine_commitment_is_the_same_with_a_mask_of_all_rows():
    _, ours = pair(dict(use_cosine_sim=True))
    x = torch.randn(3, 7, 12)
    assert_close(ours(x, freeze_codebook=True)[2], ours(x, mask=torch.ones(3, 7, dtype=torch.bool), freeze_codebook=True)[2])


def test_a_constructor_that_freezes_holds():
    ours = ResidualVQ(dim=12, num_quantizers=2, codebook_size=20, freeze_codebook=True, shared_codebook=True)
    before = copy.deepcopy(ours.state_dict())
    ours(torch.randn(3, 7, 12))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("settings", [
    {}, dict(use_cosine_sim=True), dict(codebook_dim=4), dict(commitment_weight=0.3), dict(shared_codebook=True),
    dict(beam_score_quantizer_weights=[1.0, 0.5, 2.0, 1.0]), dict(codebook_size=(5, 20, 9, 12)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_beams(settings, masked):
    original, ours = pair(settings, beam_size=3, eval_beam_size=4)
    mask = torch.arange(7) < torch.tensor([5, 2, 7])[:, None] if masked else None
    # Frozen: what the original learns from beams reaches only the first stage.
    compare(original, ours, torch.randn(3, 7, 12), mask=mask, freeze_codebook=True, beam_size=2)
    original, ours = pair(settings, beam_size=3, eval_beam_size=4)
    original.eval(), ours.eval()
    x = torch.randn(3, 7, 12)
    for found, expected in zip(ours(x, mask), original(x, mask), strict=True):
        assert_close(found, expected)


def test_beams_of_implicit_codebooks():
    original, ours = pair(dict(implicit_neural_codebook=True), beam_size=3)
    original.eval(), ours.eval()
    x = torch.randn(3, 7, 12)
    found = ours(x)
    assert_close(ours.get_output_from_indices(found[1]), found[0])
    nearest = ours(x, beam_size=1)[0]
    assert (found[0] - x).square().mean() < (nearest - x).square().mean()
    ours.train()
    results, gradients = run(ours, x)
    assert len(gradients) == 1 + len(list(ours.parameters()))


@pytest.mark.parametrize("shared", [False, True])
def test_beams_train_every_stage_with_what_was_chosen(shared):
    _, ours = pair(dict(shared_codebook=shared, beam_size=3, decay=0.7))
    before, x = copy.deepcopy(ours), torch.randn(3, 7, 12)
    quantized, indices, _ = ours(x)
    residual, expected = x, [(layer._codebook.cluster_size[0].clone(), layer._codebook.embed_avg[0].clone()) for layer in before.layers]
    sizes, sums = expected[0]
    for place, column in enumerate(indices.unbind(-1)):
        sizes, sums = (sizes, sums) if shared else expected[place]
        chosen = nn.functional.one_hot(column.flatten(), 20).float()
        sizes, sums = 0.7 * sizes + 0.3 * chosen.sum(0), 0.7 * sums + 0.3 * chosen.T @ residual.flatten(0, 1)
        residual = residual - before.codebooks[place][column]
        if not shared or place == 3:
            assert_close(ours.layers[place]._codebook.cluster_size[0], sizes)
            assert_close(ours.layers[place]._codebook.embed_avg[0], sums)
    assert_close(quantized, x - residual)


def test_diveq_equals_the_original():
    original, ours = pair(dict(diveq=True))
    x = torch.randn(3, 7, 12)
    torch.manual_seed(2)
    expected, theirs = run(original, x)
    torch.manual_seed(2)
    found, own = run(ours, x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    for name, value in theirs.items():
        assert_close(own[name], value, name)
    ours.eval()
    assert_close(ours(x)[0], ours.get_output_from_indices(ours(x)[1]))


def test_images_of_the_one_shape_that_the_original_takes():
    compare(*pair(dict(accept_image_fmap=True)), torch.randn(2, 12, 12, 12))


@pytest.mark.parametrize("settings", [{}, dict(codebook_dim=4), dict(implicit_neural_codebook=True), dict(groups=2)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_images_equal_their_rows(settings, masked):
    name = "GroupedResidualVQ" if settings.get("groups") else "ResidualVQ"
    ours, rows = (pair(settings, name, accept_image_fmap=image)[1] for image in (True, False))
    x, mask = torch.randn(2, 12, 4, 5), torch.rand(2, 4, 5) < 0.8 if masked else None
    found, expected = ours(x, mask=mask), rows(x.movedim(1, -1), mask=mask)
    assert_close(found[0], expected[0].movedim(-1, 1))
    assert torch.equal(found[1], expected[1])
    assert_close(found[2], expected[2])
    quantized, indices, _ = ours.eval()(x, mask=mask)
    assert_close(ours.get_output_from_indices(indices).movedim(-1, 1), quantized)


def test_cross_entropy_of_given_indices():
    _, ours = pair(dict(shared_codebook=False))
    x, targets = torch.randn(3, 7, 12).requires_grad_(), torch.randint(20, (3, 7, 4))
    quantized, found = ours(x, indices=targets, freeze_codebook=True)
    residual, expected = x, 0.0
    for codes, column in zip(ours.codebooks, targets.unbind(-1)):
        distances = torch.cdist(residual, codes.expand(3, -1, -1))
        expected = expected + nn.functional.cross_entropy(-distances.flatten(0, 1), column.flatten())
        residual = residual - codes[distances.argmin(-1)]
    assert_close(found, expected)
    assert_close(quantized, x - residual)
    assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (found, expected)))
    assert_close(ours(x, indices=list(targets), freeze_codebook=True)[1], expected)


def test_dropout_draws_as_the_original():
    original, ours = pair(dict(quantize_dropout=True))
    for seed in range(6):
        x = torch.randn(2, 5, 12)
        torch.manual_seed(seed)
        expected = original(x)[1]
        torch.manual_seed(seed)
        assert torch.equal(ours(x)[1], expected)
    indices = ours.eval()(x)[1]
    assert_close(ours.get_output_from_indices(indices[..., :2]), original.get_output_from_indices(indices[..., :2]))


def test_dead_codes_of_a_shared_codebook_are_replaced_by_residuals_that_the_mask_lets_pass():
    _, ours = pair(dict(shared_codebook=True, threshold_ema_dead_code=50))
    x, mask = torch.randn(2, 6, 12), torch.arange(6) < 4
    x[:, 4:] = 100
    ours(x, mask=mask.expand(2, 6))
    assert ours.codebooks.isfinite().all() and ours.codebooks.abs().max() < 10


def test_the_optimizer_of_a_shared_codebook_makes_one_step_a_call():
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
    settings = dict(shared_codebook=True, learnable_codebook=True, ema_update=False, in_place_codebook_optimizer=optimizer)
    ours = ResidualVQ(dim=4, num_quantizers=2, codebook_size=8, **settings)
    before, x = ours.codebooks[0].detach().clone().requires_grad_(), torch.randn(2, 6, 4)
    _, indices, _ = ours(x)
    residual, loss = x, 0.0
    for column in indices.unbind(-1):
        loss = loss + nn.functional.mse_loss(before[column], residual)
        residual = residual - before[column].detach()
    assert_close(ours.codebooks[0].detach(), (before - 0.5 * torch.autograd.grad(loss, before)[0]).detach())


def test_more_beams_than_codes_find_the_best_of_all_sums():
    ours = ResidualVQ(dim=4, num_quantizers=3, codebook_size=2, beam_size=8, beam_score_quantizer_weights=[0.0, 0.0, 1.0]).eval()
    first, second, third = ours.codebooks
    sums = (first[:, None, None] + second[:, None] + third).reshape(-1, 4)
    x = torch.randn(2, 9, 4)
    assert_close(ours(x)[0], sums[torch.cdist(x, sums).argmin(-1)])


def test_kmeans_start_leaves_nothing_of_the_zero_codes():
    for settings in (dict(), dict(shared_codebook=True), dict(beam_size=2)):
        ours = ResidualVQ(dim=4, num_quantizers=3, codebook_size=8, kmeans_init=True, **settings)
        x = torch.randn(4, 32, 4)
        ours(x)
        assert (ours.codebooks.norm(dim=-1) > 0).all()
        assert (ours.eval()(x)[0] - x).square().mean() < x.square().mean() / 2


def test_rows_that_are_not_finite_are_left_out():
    for ours, batch in ((pair(dict(codebook_dim=4))[1], 0), (pair(dict(groups=3), "GroupedResidualVQ")[1], 1)):
        x = torch.randn(2, 7, 12)
        x[0, 0, 0] = torch.nan
        x.requires_grad_()
        quantized, indices, losses = ours(x)
        (quantized.square().sum() + losses.sum()).backward()
        assert (quantized[0, 0] == 0).all() and (indices[..., 0, 0, :] == -1).all()
        assert x.grad.isfinite().all() and all(value.isfinite().all() for value in ours.state_dict().values())


@pytest.mark.parametrize("settings", [
    {}, dict(groups=3), dict(groups=2, codebook_dim=4), dict(groups=2, shared_codebook=True), dict(groups=2, quantize_dropout=True),
], ids=str)  # fmt: skip
def test_groups_equal_the_original(settings):
    original, ours = pair(settings, "GroupedResidualVQ")
    for seed in range(3):
        x, mask = torch.randn(3, 7, 12), torch.rand(3, 7) < 0.8
        # Both draw the dropout of all groups once.
        torch.manual_seed(seed)
        expected, theirs = run(original, x, mask=mask)
        torch.manual_seed(seed)
        found, own = run(ours, x, mask=mask)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
        for name, value in theirs.items():
            assert_close(own[name], value, name)
    compare_state(original, ours)
    original.eval(), ours.eval()
    found, expected = (module(x, return_all_codes=True) for module in (ours, original))
    for a, b in zip((*found[:3], *found[3]), (*expected[:3], *expected[3]), strict=True):
        assert_close(a, b)
    assert_close(ours.codebooks, original.codebooks)
    assert_close(ours.get_codes_from_indices(found[1]), original.get_codes_from_indices(found[1]))
    assert_close(ours.get_output_from_indices(found[1]), found[0])
    entropies = [rvq(part, indices=column)[1] for rvq, part, column in zip(ours.rvqs, x.chunk(len(ours.rvqs), -1), found[1])]
    assert_close(ours(x, indices=found[1])[1], sum(entropies))


@pytest.mark.parametrize(
    "settings", [{}, dict(implicit_neural_codebook=True), dict(beam_size=2), dict(shared_codebook=True, codebook_dim=4)], ids=str
)
def test_half_precision(settings):
    _, ours = pair(settings)
    ours.to(torch.bfloat16)
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16).requires_grad_()
    quantized, indices, losses = ours(x)
    (quantized.float().square().sum() + losses.sum()).backward()
    assert quantized.dtype == torch.bfloat16 and x.grad.isfinite().all()
    quantized, indices, _ = ours.eval()(x)
    torch.testing.assert_close(ours.get_output_from_indices(indices).bfloat16(), quantized, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.float().train()(x.float())[0].isfinite().all()


@pytest.mark.parametrize("arguments, error, name", [
    (dict(beam_size=9), NotImplementedError, "beam_size"),
    (dict(sync_codebook=False), NotImplementedError, "sync_codebook"),
    (dict(implicit_neural_codebook=True, commitment_use_cross_entropy_loss=True), NotImplementedError, "commitment_use_cross_entropy_loss"),
    (dict(implicit_neural_codebook=True, codebook_diversity_loss_weight=1.0), NotImplementedError, "codebook_diversity_loss_weight"),
    (dict(implicit_neural_codebook=True, use_cosine_sim=True), ValueError, "use_cosine_sim"),
    (dict(implicit_neural_codebook=True, mlp_kwargs=dict(width=3)), ValueError, "width"),
    (dict(heads=2), ValueError, "heads"),
    (dict(eval_beam_size=2), ValueError, "eval_beam_size"),
    (dict(beam_score_quantizer_weights=[1.0]), ValueError, "beam_score_quantizer_weights"),
    (dict(codebook_size=(4, 4)), ValueError, "codebook_size"),
    (dict(codebook_size=(4, 5, 6), shared_codebook=True), ValueError, "codebook_size"),
    (dict(quantize_dropout=True, quantize_dropout_cutoff_index=3), ValueError, "quantize_dropout_cutoff_index"),
    (dict(diveq=True, ema_update=True), ValueError, "ema_update"),
    (dict(no_such_argument=1), TypeError, "no_such_argument"),
])  # fmt: skip
def test_what_does_not_fit_says_so(arguments, error, name):
    with pytest.raises(error, match=name):
        ResidualVQ(**dict(dim=4, num_quantizers=3, codebook_size=8) | arguments)


@pytest.mark.parametrize("settings, arguments, name", [
    (dict(implicit_neural_codebook=True), dict(indices=torch.zeros(2, 5, 3, dtype=torch.int64)), "indices"),
    (dict(stochastic_sample_codes=True), dict(beam_size=2), "stochastic_sample_codes"),
    (dict(), dict(beam_size=9), "beam_size"),
    (dict(implicit_neural_codebook=True, kmeans_init=True), dict(beam_size=2), "kmeans_init"),
])  # fmt: skip
def test_what_a_call_does_not_support_says_so(settings, arguments, name):
    with pytest.raises(NotImplementedError, match=name):
        ResidualVQ(dim=4, num_quantizers=3, codebook_size=8, **settings)(torch.randn(2, 5, 4), **arguments)


SWAPPED = {name: settings for name, settings in SETTINGS.items() if name != "affine"}
SWAPPED |= {"beams": dict(beam_size=3), "diveq": dict(diveq=True)}


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("settings", SWAPPED.values(), ids=SWAPPED)
def test_accelerate_swaps_the_original(settings, groups):
    torch.manual_seed(4)
    cls, ours = (peer.ResidualVQ, ResidualVQ) if groups is None else (peer.GroupedResidualVQ, GroupedResidualVQ)
    given = dict(dim=12, num_quantizers=4, codebook_size=20) | copy.deepcopy(settings) | ({"groups": groups} if groups else {})
    model = nn.Sequential(nn.Linear(12, 12), cls(**given)).eval()
    x = torch.randn(2, 9, 12)
    expected = model(x) if not settings.get("diveq") else None
    parameters = list(model.parameters())
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    assert isinstance(model[1], ours) and {id(p) for p in model.parameters()} == {id(p) for p in parameters}
    if expected is not None:
        for found, value in zip(model(x), expected, strict=True):
            assert_close(found, value)
    vqkit.restore(model)
    assert type(model[1]) is cls and {id(p) for p in model.parameters()} == {id(p) for p in parameters}
    if expected is not None:
        assert_close(model(x)[0], expected[0])
