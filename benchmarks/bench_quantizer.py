"""The whole quantizer in training, forward and backward, against other implementations."""

import pytest
import torch

import vqkit
from benchmarks.naive import NaiveQuantizer


def _ours(dim, size):
    return vqkit.Quantizer(dim, size, channel_first=True)


def _naive(dim, size):
    return NaiveQuantizer(dim, size, codebook="ema")


def _peer(dim, size):
    peer = pytest.importorskip("vector_quantize_pytorch")
    return peer.VectorQuantize(dim, size, accept_image_fmap=True, rotation_trick=False)


CONTENDERS = {"vqkit": _ours, "cdist + one-hot": _naive, "vector-quantize-pytorch": _peer}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("n, size, dim", [(4096, 1024, 256), (4096, 16384, 256), (16384, 8192, 32), (2048, 65536, 8)])
def test_quantizer_training_step(measure, device, n, size, dim, contender):
    quantizer = CONTENDERS[contender](dim, size).to(device)
    x = torch.randn(1, dim, 32, n // 32, device=device, requires_grad=True)

    def step():
        result = quantizer(x)
        (result[0].square().mean() + result[-1].sum()).backward()

    measure(step, f"quantizer forward + backward (EMA), N {n}, K {size}, D {dim}", contender, rounds=5)
