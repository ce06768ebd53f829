"""What holds for every adapter: graphs without a break, half precision, rows that are not finite."""

import copy

import pytest
import torch

from vqkit.compat import cvq, dac, diffusers, encodec, llamagen, monai, taming, var, vit_vqgan

IMAGE, SIGNAL = (2, 6, 4, 4), (3, 6, 10)
ADAPTERS = {
    "taming": (lambda: taming.VectorQuantizer2(20, 6, 0.25), IMAGE),
    "taming first": (lambda: taming.VectorQuantizer(20, 6, 0.25), IMAGE),
    "taming ema": (lambda: taming.EMAVectorQuantizer(20, 6, 0.25), IMAGE),
    "remap": (lambda: taming.VectorQuantizer2(20, 6, 0.25, remap=torch.arange(0, 20, 3), unknown_index="extra"), IMAGE),
    "gumbel": (lambda: taming.GumbelQuantize(6, 6, 20), IMAGE),
    "diffusers": (lambda: diffusers.VectorQuantizer(20, 6, 0.25), IMAGE),
    "encodec": (lambda: encodec.VectorQuantization(6, 20, codebook_dim=4, kmeans_init=False), SIGNAL),
    "encodec residual": (
        lambda: encodec.ResidualVectorQuantization(num_quantizers=2, dim=6, codebook_size=20, kmeans_init=False),
        SIGNAL,
    ),
    "dac": (lambda: dac.VectorQuantize(6, 20, 4, layer=torch.nn.Conv1d), SIGNAL),
    "llamagen": (lambda: llamagen.VectorQuantizer(20, 6, 0.25, 0.1, True, True), IMAGE),
    "cvq": (lambda: cvq.VectorQuantiser(20, 6, 0.25, anchor="closest"), IMAGE),
    "vit-vqgan": (lambda: vit_vqgan.VectorQuantizer(6, 20, use_residual=True, num_quantizers=2), (3, 10, 6)),
    "monai": (lambda: monai.EMAQuantizer(2, 20, 6), IMAGE),
    "var": (lambda: var.VectorQuantizer2(20, 6, True, v_patch_nums=(1, 2, 4)), IMAGE),
}


def tensors(results):
    found = [value for value in torch.utils._pytree.tree_leaves(results) if isinstance(value, torch.Tensor)]
    return [value for value in found if not value.is_sparse]


@pytest.mark.parametrize("name", ADAPTERS)
def test_compiles_without_a_break(name):
    build, shape = ADAPTERS[name]
    quantizer, x = build(), torch.randn(shape)
    for training in (True, False):
        torch.compiler.reset()
        quantizer.train(training)
        other = copy.deepcopy(quantizer)
        torch.manual_seed(1)
        got = tensors(torch.compile(quantizer, fullgraph=True, backend="eager")(x))
        torch.manual_seed(1)
        for a, b in zip(got, tensors(other(x)), strict=True):
            torch.testing.assert_close(a, b)
        for key, value in other.state_dict().items():
            torch.testing.assert_close(quantizer.state_dict()[key], value)


@pytest.mark.parametrize("name", ADAPTERS)
def test_half_precision(name):
    build, shape = ADAPTERS[name]
    quantizer = build().to(torch.bfloat16)
    quantized, *_ = quantizer(torch.randn(shape, dtype=torch.bfloat16, requires_grad=True))
    assert quantized.dtype in (torch.bfloat16, torch.float32) and quantized.isfinite().all()
    quantized.float().sum().backward()


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in ("gumbel", "encodec residual", "encodec", "dac")])
def test_a_row_that_is_not_finite_teaches_nothing(name):
    build, shape = ADAPTERS[name]
    quantizer, x = build(), torch.randn(shape)
    x[0, 0, 0] = torch.inf
    quantized, *rest = quantizer(x.requires_grad_())
    losses = [value for value in tensors(rest) if value.requires_grad]
    (quantized.sum() + sum(value.sum() for value in losses)).backward()
    assert quantized.isfinite().all()
    for key, value in quantizer.state_dict(keep_vars=True).items():
        assert value.isfinite().all() and (value.grad is None or value.grad.isfinite().all()), key


def test_gradients_flow_under_autocast():
    quantizer, x = taming.VectorQuantizer2(20, 6, 0.25), torch.randn(IMAGE, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        z_q, loss, (_, _, indices) = quantizer(x)
    assert torch.equal(indices, quantizer(x)[2][2]) and loss.dtype == torch.float32
    (z_q.sum() + loss).backward()
    assert x.grad.isfinite().all()
