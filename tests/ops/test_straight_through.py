"""Outputs, both losses and both gradients of every backend against float64 autograd of the formulas."""

import pytest
import torch

from vqkit.ops import straight_through

SHAPES = [(0, 3, 4, 1), (1, 1, 1, 1), (7, 5, 3, 1), (130, 33, 17, 1), (65, 40, 64, 2), (33, 9, 5, 3)]


def formulas(latents, codes, indices, gradient):
    """The contract written out with autograd, float64."""
    valid = (indices[:, :1] >= 0).double()
    chosen = codes[indices.clamp(min=0)].mean(1) * valid
    rows = latents * valid
    elements = max(1.0, float(valid.sum()) * latents.shape[1])
    commitment = (rows - chosen.detach()).square().sum() / elements
    codebook = (rows.detach() - chosen).square().sum() / elements
    value = chosen.detach()
    if gradient == "straight_through":
        return rows + (value - rows).detach(), commitment, codebook
    x = rows.detach()
    long, short = x.norm(dim=-1, keepdim=True), value.norm(dim=-1, keepdim=True)
    e, q = x / long.where(long > 0, 1.0), value / short.where(short > 0, 1.0)
    middle = (e + q).norm(dim=-1, keepdim=True)
    w = (e + q) / middle.where(middle > 0, 1.0)
    turned = rows - 2 * w * (w * rows).sum(-1, keepdim=True) + 2 * q * (e * rows).sum(-1, keepdim=True)
    turned = turned * short / long.where(long > 0, 1.0)
    turned = turned.where((long > 0) & (short > 0) & (middle > 0), rows)
    return value + turned - turned.detach(), commitment, codebook


def problem(shape, masked):
    n, size, dim, chosen = shape
    latents, codes = torch.randn(n, dim), torch.randn(size, dim)
    indices = torch.randint(size, (n, chosen))
    if masked:
        indices[torch.rand(n) < 0.4] = -1
    return latents, codes, indices


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, rtol, atol", [(torch.float32, 2e-5, 2e-6), (torch.float16, 4e-3, 2e-3), (torch.bfloat16, 3e-2, 2e-2), (torch.float64, 1e-9, 1e-12)])
def test_outputs_and_gradients(backend, device, dtype, rtol, atol, masked, gradient, shape):
    latents, codes, indices = problem(shape, masked)
    latents, codes = latents.to(dtype), codes.to(dtype)
    weights = torch.randn(latents.shape).to(dtype)
    results = []
    for precise in (True, False):
        x, c = (t.double() if precise else t.to(device) for t in (latents, codes))
        x, c = x.detach().requires_grad_(), c.detach().requires_grad_()
        if precise:
            quantized, commitment, codebook = formulas(x, c, indices, gradient)
        else:
            quantized, commitment, codebook = straight_through(x, c, indices.to(device), gradient=gradient, backend=backend)
            assert quantized.dtype == dtype and commitment.dtype == torch.promote_types(dtype, torch.float32)
        w = weights.to(quantized.device, quantized.dtype)
        ((quantized * w).sum() + 0.3 * commitment * len(latents) + 0.7 * codebook * len(latents)).backward()
        results.append([t.detach().cpu().double() for t in (quantized, commitment, codebook, x.grad, c.grad)])
    for name, expected, got in zip(("quantized", "commitment", "codebook", "grad latents", "grad codes"), *results):
        # A sum over rows of one code may cancel: its error is relative to the terms.
        scale = atol * (1 + float(expected.abs().max()) if expected.numel() else 1)
        torch.testing.assert_close(got, expected, rtol=rtol, atol=scale, msg=lambda text: f"{name}: {text}")


def test_quantized_is_exactly_the_code(backend, device):
    latents, codes = torch.randn(50, 12, device=device), torch.randn(9, 12, device=device)
    indices = torch.randint(9, (50,), device=device)
    quantized, _, _ = straight_through(latents * 1000, codes, indices, backend=backend)
    assert torch.equal(quantized, codes[indices])


def test_each_gradient_goes_where_the_contract_says(backend, device):
    latents = torch.randn(8, 3, device=device, requires_grad=True)
    codes = torch.randn(4, 3, device=device, requires_grad=True)
    outputs = straight_through(latents, codes, torch.randint(4, (8,), device=device), backend=backend)
    reaches = [[bool(g.abs().sum() > 0) for g in torch.autograd.grad(o.sum(), (latents, codes), retain_graph=True)] for o in outputs]
    assert reaches == [[True, False], [True, False], [False, True]]


def test_rotation_keeps_length_ratio_and_angle(backend, device):
    # R is a rotation times |q|/|x|: gradients keep their inner products up to the ratio squared.
    latents = torch.randn(6, 10, device=device, requires_grad=True)
    codes = torch.randn(6, 10, device=device)
    indices = torch.arange(6, device=device)
    quantized, _, _ = straight_through(latents, codes, indices, gradient="rotation", backend=backend)
    (turned,) = torch.autograd.grad((quantized * codes).sum(), latents)
    # The gradient q, turned back, is parallel to x and has length |q| * |q| / |x|.
    norms = codes.norm(dim=-1, keepdim=True), latents.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(turned, latents.detach() / norms[1] * norms[0] ** 2 / norms[1], rtol=1e-4, atol=1e-4)


def test_rotation_of_zero_or_opposite_vectors_is_straight_through(backend, device):
    latents = torch.tensor([[0.0, 0], [1, 1], [1, 2]], device=device, requires_grad=True)
    codes = torch.tensor([[1.0, 0], [0, 0], [-1, -2]], device=device)
    quantized, _, _ = straight_through(latents, codes, torch.arange(3, device=device), gradient="rotation", backend=backend)
    (gradient,) = torch.autograd.grad(quantized.sum(), latents)
    assert torch.equal(gradient, torch.ones(3, 2, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_rotation_of_opposite_rows_is_straight_through(backend, device, dtype, factor):
    # Normalised, they cancel to rounding and not to zero.
    rows = torch.randint(1, 9, (300, 7)).to(device, dtype)
    latents, weights = rows.clone().requires_grad_(), torch.randn(300, 7).to(device, dtype)
    indices = torch.arange(300, device=device)
    quantized, _, _ = straight_through(latents, -factor * rows, indices, gradient="rotation", backend=backend)
    (gradient,) = torch.autograd.grad(quantized, latents, weights)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("magnitude", [1e-25, 1e20])
def test_rotation_at_magnitudes_whose_squares_leave_float32(backend, device, magnitude):
    latents, codes, weights = torch.randn(50, 8) * magnitude, torch.randn(50, 8) * magnitude, torch.randn(50, 8)
    x = latents.to(device).requires_grad_()
    indices = torch.arange(50)
    quantized, _, _ = straight_through(x, codes.to(device), indices.to(device), gradient="rotation", backend=backend)
    (gradient,) = torch.autograd.grad(quantized, x, weights.to(device))
    precise = latents.double().requires_grad_()
    expected, _, _ = formulas(precise, codes.double(), indices[:, None], "rotation")
    (truth,) = torch.autograd.grad((expected * weights.double()).sum(), precise)
    torch.testing.assert_close(gradient.cpu().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("chosen", [1, 2])
def test_codes_that_want_no_gradient_change_no_bits(backend, device, gradient, chosen):
    latents, codes, indices = problem((90, 7, 9, chosen), True)
    results = []
    for wanted in (True, False):
        x, c = latents.clone().to(device).requires_grad_(), codes.clone().to(device).requires_grad_(wanted)
        quantized, commitment, _ = straight_through(x, c, indices.to(device), gradient=gradient, backend=backend)
        (quantized.square().sum() + commitment).backward()
        results.append(x.grad)
        assert wanted == (c.grad is not None)
    assert torch.equal(*results)


def test_all_masked_has_no_loss_and_no_gradient(backend, device):
    latents = torch.randn(4, 3, device=device, requires_grad=True)
    codes = torch.randn(2, 3, device=device, requires_grad=True)
    quantized, commitment, codebook = straight_through(latents, codes, torch.full((4,), -1, device=device), backend=backend)
    (quantized.sum() + commitment + codebook).backward()
    assert not quantized.any() and commitment == codebook == 0
    assert not latents.grad.any() and not codes.grad.any()


def test_two_runs_give_the_same_bits(backend, device):
    latents, codes, indices = problem((400, 7, 9, 1), False)
    results = []
    for _ in range(2):
        x, c = latents.to(device).requires_grad_(), codes.to(device).requires_grad_()
        outputs = straight_through(x, c, indices.to(device), backend=backend)
        results.append([*outputs, *torch.autograd.grad(outputs[1] + outputs[2], (x, c))])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_registration(backend, device, gradient):
    latents, codes = torch.randn(6, 4, device=device, requires_grad=True), torch.randn(5, 4, device=device, requires_grad=True)
    indices = torch.randint(5, (6, 2), device=device)
    torch.library.opcheck(torch.ops.vqkit.straight_through, (latents, codes, indices, gradient == "rotation", backend))


def test_compiled_backward_equals_eager(backend, device):
    latents, codes, indices = problem((20, 5, 6, 1), True)

    def loss(x, c):
        quantized, commitment, codebook = straight_through(x, c, indices.to(device), backend=backend)
        return quantized.square().sum() + commitment + codebook

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x, c = latents.to(device).requires_grad_(), codes.to(device).requires_grad_()
        gradients.append(torch.autograd.grad(function(x, c), (x, c)))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_a_mask_after_the_first_place_is_an_error(backend):
    # Of CPU tensors: on a GPU looking would wait for it.
    latents, codes = torch.zeros(2, 3), torch.randn(4, 3)
    with pytest.raises(IndexError, match="indices: .*first place.*place 1 of latent 1"):
        straight_through(latents, codes, torch.tensor([[-1, -1], [2, -1]]), backend="reference" if backend == "triton" else backend)
    quantized, _, _ = straight_through(latents, codes, torch.tensor([[-1, 2], [3, 1]]), backend="reference")
    torch.testing.assert_close(quantized, torch.stack([torch.zeros(3), codes[[3, 1]].mean(0)]))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(indices=torch.zeros(3, dtype=torch.int32)), TypeError, "indices.*int32"),
        (dict(indices=torch.zeros(2, dtype=torch.int64)), ValueError, r"indices.*\(3,\).*\(2,\)"),
        (dict(indices=torch.zeros(3, 0, dtype=torch.int64)), ValueError, "indices"),
        (dict(indices=[0, 1, 0]), TypeError, "indices.*list"),
        (dict(indices=torch.tensor([0, 1, 2])), IndexError, "indices.*K = 2.*0..2"),
        (dict(indices=torch.tensor([0, -2, 1])), IndexError, "indices"),
        (dict(codes=torch.zeros(2, 4, dtype=torch.float64)), TypeError, "latents"),
        (dict(gradient="gumbel"), ValueError, "gradient.*gumbel"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = dict(latents=torch.zeros(3, 4), codes=torch.zeros(2, 4), indices=torch.zeros(3, dtype=torch.int64)) | change
    with pytest.raises(error, match=words):
        straight_through(**arguments)
