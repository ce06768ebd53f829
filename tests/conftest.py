"""Without a GPU, Triton kernels run in the interpreter: set before anything imports triton or starts a thread pool."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DEVICES = {"reference": "cpu", "native": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}


def _refusal(backend: str) -> str | None:
    from vqkit.ops.nearest import OPERATOR

    return OPERATOR.refusals((torch.zeros(1, 1, device=DEVICES[backend]),))[backend]()


@pytest.fixture(params=list(DEVICES))
def backend(request) -> str:
    """Every backend that runs here, one after the other; ``device`` is where its tensors live."""
    if reason := _refusal(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def device(backend) -> str:
    return DEVICES[backend]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
