import pytest
import torch

from vqkit.kernels import probe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reason := probe.unavailable(torch.zeros(1, device=DEVICE)):
    pytest.skip(reason, allow_module_level=True)

from vqkit.kernels.straight_through import straight_through, straight_through_backward  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}
SHAPES = [(1, 1, 1, 1), (300, 7, 3, 1), (140, 20, 65, 2), (20, 9, 300, 3)]


def problem(n, size, d, selections, dtype):
    latents = torch.randn(n, d, device=DEVICE).to(dtype)
    codes = torch.randn(size, d, device=DEVICE).to(dtype)
    indices = torch.randint(0, size, (n, selections), device=DEVICE)
    indices[4::5, 0] = -1
    gradients = torch.randn(n, d, device=DEVICE).to(dtype)
    return latents, codes, indices, gradients


def rotated(latents, quantized):
    """The rotation trick's forward map, by its definition, in float64."""
    unit, direction = (v / v.norm(dim=1, keepdim=True) for v in (latents.detach(), quantized.detach()))
    between = unit + direction
    between = between / between.norm(dim=1, keepdim=True)
    turned = latents - 2 * between * (between * latents).sum(1, keepdim=True) + 2 * direction * (unit * latents).sum(1, keepdim=True)
    return turned * quantized.detach().norm(dim=1, keepdim=True) / latents.detach().norm(dim=1, keepdim=True)


def reference(latents, codes, indices, gradients, commitment, codebook, rotation):
    latents, codes = latents.double().requires_grad_(), codes.double().requires_grad_()
    keep = (indices[:, :1] >= 0).double()
    quantized = codes[indices.clamp(min=0)].mean(1)
    elements = max(1, int(keep.sum()) * latents.shape[1])
    passed = rotated(latents, quantized) if rotation else latents + (quantized - latents).detach()
    error = ((latents - quantized).square() * keep).sum() / elements
    loss = (passed * gradients.double() * keep).sum()
    loss = loss + commitment * ((latents - quantized.detach()).square() * keep).sum() / elements
    loss = loss + codebook * ((latents.detach() - quantized).square() * keep).sum() / elements
    return quantized.detach() * keep, error.detach(), *torch.autograd.grad(loss, (latents, codes))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("n, size, d, selections", SHAPES)
@pytest.mark.parametrize("rotation", [False, True])
def test_outputs_and_gradients(n, size, d, selections, dtype, rotation):
    if rotation and d == 1:
        pytest.skip("one dimension has no rotation: e + q^ is zero for opposite signs")
    latents, codes, indices, gradients = problem(n, size, d, selections, dtype)
    weights = torch.tensor([0.7, 3.0], device=DEVICE, dtype=torch.promote_types(dtype, torch.float32))
    quantized, error = straight_through(latents, codes, indices)
    grads = straight_through_backward(latents, codes, indices, gradients, *weights, rotation, True)
    expected = reference(latents, codes, indices, gradients, *weights, rotation)
    assert [t.dtype for t in (quantized, error, *grads)] == [dtype, weights.dtype, dtype, dtype]
    for result, truth in zip((quantized, error, *grads), expected):
        scale = TOLERANCE[dtype] * truth.abs().amax().item()
        torch.testing.assert_close(result.double(), truth, rtol=TOLERANCE[dtype], atol=scale)


def test_one_selection_gathers_the_bits_of_the_codes():
    latents, codes, indices, _ = problem(50, 9, 5, 1, torch.float32)
    quantized, _ = straight_through(latents, codes, indices)
    masked = indices[:, 0] < 0
    assert torch.equal(quantized[~masked], codes[indices[~masked, 0]]) and not quantized[masked].any()


@pytest.mark.parametrize("n", [0, 6])
def test_nothing_selected_has_no_error_and_no_gradient(n):
    latents, codes, indices, gradients = problem(n, 4, 3, 2, torch.float32)
    indices[:, 0] = -1
    quantized, error = straight_through(latents, codes, indices)
    one = torch.ones((), device=DEVICE)
    grad_latents, grad_codes = straight_through_backward(latents, codes, indices, gradients, one, one, True, True)
    assert quantized.shape == (n, 3) and error.item() == 0
    assert not quantized.any() and not grad_latents.any() and not grad_codes.any()
    assert grad_latents.shape == (n, 3) and grad_codes.shape == (4, 3)


def test_rows_without_a_rotation_pass_the_gradient_straight():
    latents = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, 0.5]], device=DEVICE)
    codes = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-2.0, -4.0], [-9.0, -1.5]], device=DEVICE)
    gradients = torch.randn(4, 2, device=DEVICE)
    zero = torch.zeros((), device=DEVICE)
    indices = torch.arange(4, device=DEVICE)[:, None]
    grad_latents, _ = straight_through_backward(latents, codes, indices, gradients, zero, zero, True, True)
    torch.testing.assert_close(grad_latents, gradients)


def test_the_rotation_keeps_angles_and_scales_by_the_norms():
    latents, codes, indices, gradients = problem(30, 8, 6, 1, torch.float64)
    indices.clamp_(min=0)
    zero = torch.zeros((), device=DEVICE, dtype=torch.float64)
    grad_latents, _ = straight_through_backward(latents, codes, indices, gradients, zero, zero, True, True)
    gain = codes[indices[:, 0]].norm(dim=1) / latents.norm(dim=1)
    torch.testing.assert_close(grad_latents.norm(dim=1), gradients.norm(dim=1) * gain)


def test_two_runs_give_the_same_bits():
    latents, codes, indices, gradients = problem(700, 2, 9, 2, torch.float32)
    one = torch.ones((), device=DEVICE)
    runs = [
        (*straight_through(latents, codes, indices), *straight_through_backward(latents, codes, indices, gradients, one, one, True, True))
        for _ in range(2)
    ]
    assert all(torch.equal(first, second) for first, second in zip(*runs))


@pytest.mark.parametrize("rotation", [False, True])
def test_indices_outside_the_table_read_nothing(rotation):
    """The table lies between NaN, and what is not in it counts as zero."""
    latents, codes, _, gradients = problem(4, 5, 6, 1, torch.float32)
    surrounded = torch.full((15, 6), float("nan"), device=DEVICE)
    surrounded[5:10] = codes
    indices = torch.tensor([[1, -1], [5, 2], [4, 9], [-3, 0]], device=DEVICE)
    one = torch.ones((), device=DEVICE)
    quantized, error = straight_through(latents, surrounded[5:10], indices)
    grads = straight_through_backward(latents, surrounded[5:10], indices, gradients, one, one, rotation, True)
    expected = torch.stack([codes[1], codes[2], codes[4], torch.zeros_like(codes[0])]) / 2
    torch.testing.assert_close(quantized, expected)
    assert error.isfinite() and all(gradient.isfinite().all() for gradient in grads)


def test_codes_that_want_no_gradient_get_zero():
    latents, codes, indices, gradients = problem(90, 9, 5, 2, torch.float32)
    one = torch.ones((), device=DEVICE)
    with_codes = straight_through_backward(latents, codes, indices, gradients, one, one, True, True)
    without = straight_through_backward(latents, codes, indices, gradients, one, one, True, False)
    assert torch.equal(with_codes[0], without[0]) and with_codes[1].any() and not without[1].any()
