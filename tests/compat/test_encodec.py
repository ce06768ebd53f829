"""EnCodec's quantizers against the published formulas, and the faults of the original that are not ours."""

import copy

import pytest
import torch

from tests.compat.foreign import FOREIGN
from vqkit.compat.encodec import EuclideanCodebook, ResidualVectorQuantization, VectorQuantization


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}, {"commitment_weight": 0.25, "decay": 0.9, "epsilon": 1e-3}], ids=str)
def test_vector_quantization(options, assert_same):
    options = options | dict(threshold_ema_dead_code=0)
    assert_same(FOREIGN.encodec(6, 20, **options), VectorQuantization(6, 20, kmeans_init=False, **options), torch.randn(4, 6, 50))


def test_codebook():
    book = EuclideanCodebook(6, 20, threshold_ema_dead_code=0)
    assert list(book.state_dict()) == ["inited", "cluster_size", "embed", "embed_avg"]
    assert book.state_dict()["inited"].tolist() == [1] and not book.state_dict()["cluster_size"].any()
    x, before = torch.randn(4, 30, 6, requires_grad=True), book.embed.clone()
    quantized, indices = book(x)
    assert torch.equal(quantized, before[indices]) and not quantized.requires_grad
    assert torch.equal(book.decode(book.encode(x)), book.eval()(x)[0])


def test_residual():
    quantizer = ResidualVectorQuantization(num_quantizers=3, dim=6, codebook_size=20, kmeans_init=False, threshold_ema_dead_code=0)
    x, layers = torch.randn(4, 6, 50, requires_grad=True), quantizer.layers
    rest, expected = x.detach(), []
    for layer in layers:
        expected.append(layer.codebook[torch.cdist(rest.mT, layer.codebook).argmin(-1)].mT)
        rest = rest - expected[-1]
    errors = [(x.detach() - sum(expected[: n + 1])).square().mean() for n in range(3)]
    quantized, indices, losses = quantizer(x)
    torch.testing.assert_close(quantized, sum(expected))
    torch.testing.assert_close(losses[:, 0], torch.stack(errors))
    assert indices.shape == (3, 4, 50) and quantized.requires_grad
    (gradient,) = torch.autograd.grad(quantized.sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    quantizer.eval()
    codes = quantizer.encode(x, n_q=2)
    assert codes.shape == (2, 4, 50)
    torch.testing.assert_close(quantizer.decode(codes), quantizer(x, n_q=2)[0])


def test_a_replaced_code_lives_on():
    quantizer = VectorQuantization(6, 20, kmeans_init=False, threshold_ema_dead_code=2)
    book = quantizer._codebook.quantizer.codebook
    book.cluster_size.fill_(50)
    book.embed_sum.copy_(book.codes * 50)
    book.cluster_size[3], x = 0, torch.randn(4, 6, 200)
    rows = x.mT.reshape(-1, 6)
    with torch.no_grad():
        book.codes[3] = book.embed_sum[3] = 100.0
    quantizer(x)
    assert (rows == quantizer.codebook[3]).all(-1).any()
    fresh = quantizer.codebook[3].clone()
    quantizer(x)
    assert (quantizer.codebook[3] - fresh).norm() < 1


def test_kmeans_start_in_training_only():
    quantizer, x = VectorQuantization(6, 20, threshold_ema_dead_code=0), torch.randn(4, 6, 50)
    before = quantizer.codebook.clone()
    quantizer.eval()(x)
    assert torch.equal(quantizer.codebook, before) and quantizer.state_dict()["_codebook.inited"].tolist() == [0]
    quantizer.train()(x)
    assert quantizer.state_dict()["_codebook.inited"].tolist() == [1]
    assert (torch.cdist(x.mT.reshape(-1, 6), quantizer.codebook).min(1).values.mean()) < 2
    again = VectorQuantization(6, 20)
    again.load_state_dict(quantizer.state_dict())
    assert not again._codebook.quantizer.codebook._awaits_start and torch.equal(again.codebook, quantizer.codebook)


def test_nan_spoils_nothing():
    for length in (6, 3):
        torch.manual_seed(0)
        quantizer, x = VectorQuantization(6, 20, length, kmeans_init=False, threshold_ema_dead_code=0), torch.randn(4, 6, 50)
        twin, others = copy.deepcopy(quantizer), x[:, :, 1:]
        x[:, 0, 0] = torch.nan
        gradients = []
        for module, rows in ((quantizer, x), (twin, others)):
            rows = rows.clone().requires_grad_()
            quantized, indices, loss = module(rows)
            (quantized.square().sum() + loss).backward()
            gradients.append([rows.grad[:, :, -49:], *(parameter.grad for parameter in module.parameters())])
            assert loss.isfinite() and rows.grad.isfinite().all()
            if rows.shape == x.shape:
                assert (indices[:, 0] == -1).all() and not quantized[:, :, 0].any() and not quantizer.decode(indices)[:, :, 0].any()
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(quantizer.state_dict(), twin.state_dict())


def test_eval_mode_passes_no_gradient():
    quantizer = VectorQuantization(6, 20, kmeans_init=False).eval()
    quantized, _, loss = quantizer(torch.randn(4, 6, 50, requires_grad=True))
    assert not quantized.requires_grad and loss.tolist() == [0]
