"""The whole quantizer in training, forward and backward, against other implementations."""

import pytest
import torch

from benchmarks import contenders


@pytest.mark.parametrize("contender", contenders.QUANTIZERS)
@pytest.mark.parametrize("n, size, dim", [(4096, 1024, 256), (4096, 16384, 256), (16384, 8192, 32), (2048, 65536, 8)])
def test_quantizer_training_step(measure, device, n, size, dim, contender):
    x = torch.randn(1, dim, 32, n // 32, device=device, requires_grad=True)
    group = f"quantizer forward + backward (EMA), N {n}, K {size}, D {dim}"
    measure(lambda name: contenders.quantizer_step(name, size, x), group, contender, rounds=5)
