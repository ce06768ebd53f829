"""The CUDA search: what it says without a device, and against the processor's exact search where there is one."""

import subprocess
import sys

import pytest
import torch

from vqkit import native

built = native._native is not None and hasattr(native._native, "cuda_refusal")
device = pytest.mark.skipif(
    not built or not torch.cuda.is_available() or native.cuda_rejects(torch.zeros(1, device="cuda")) is not None,
    reason="needs a CUDA device and a native module with code for it",
)


def test_tensors_that_it_cannot_take_are_refused_with_a_reason():
    reason = native.cuda_rejects(torch.zeros(2, 2))
    assert "built" in reason or "CUDA devices, got a tensor on cpu" in reason
    with pytest.raises(RuntimeError, match="cuda_nearest_codes: "):
        native.cuda_nearest_codes(torch.zeros(2, 2), torch.zeros(2, 2), 1, False, True)


@pytest.mark.skipif(not built, reason="the native module was built without CUDA")
def test_a_device_that_is_not_there_is_a_reason_and_not_a_crash():
    assert native._native.cuda_refusal(1000)


def test_importing_and_describing_start_no_cuda():
    code = "import torch; from vqkit import native; native.describe(); native.rejects(torch.zeros(1)); assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


@device
@pytest.mark.parametrize("kind", ["gaussian", "offset", "fresh", "duplicates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_equals_the_processor(kind, dtype, cosine):
    for n, k, d in [(1, 1, 1), (7, 33, 3), (129, 1000, 65), (1000, 129, 8), (300, 5000, 256)]:
        generator = torch.Generator().manual_seed(n + k + d)
        latents, codes = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
        if kind == "offset":
            latents, codes = latents + 1000, codes + 1000
        if kind == "fresh":
            codes = (torch.rand(k, d, generator=generator) * 2 - 1) / k
        if kind == "duplicates":
            codes[k // 2 :] = codes[: k - k // 2].clone()
        latents, codes = latents.to(dtype), codes.to(dtype)
        for ranks in (1, 2, 8):
            if ranks > k:
                continue
            distances, indices = native.cuda_nearest_codes(latents.cuda(), codes.cuda(), ranks, cosine, True)
            expected_distances, expected = native.nearest_codes(latents, codes, ranks, cosine, True)
            assert torch.allclose(distances.cpu(), expected_distances, rtol=1e-6, atol=1e-6)
            # the two add in another order: they may differ where float64 cannot tell the codes apart
            differs = indices.cpu() != expected
            assert differs.float().mean() < 1e-3
            again = native.cuda_nearest_codes(latents.cuda(), codes.cuda(), ranks, cosine, True)
            assert torch.equal(again[0], distances) and torch.equal(again[1], indices)


@device
def test_rows_and_codes_that_are_not_finite():
    latents, codes = torch.randn(40, 6), torch.randn(50, 6)
    latents[1, 3] = torch.nan
    codes[[0, 7, 49], 2] = torch.inf
    latents[5] *= 1e30
    distances, indices = native.cuda_nearest_codes(latents.cuda(), codes.cuda(), 8, False, True)
    expected_distances, expected = native.nearest_codes(latents, codes, 8, False, True)
    assert torch.equal(indices.cpu(), expected)
    assert torch.allclose(distances.cpu(), expected_distances, rtol=1e-6, atol=1e-6, equal_nan=True)


@device
def test_no_rows():
    distances, indices = native.cuda_nearest_codes(torch.zeros(0, 4, device="cuda"), torch.ones(3, 4, device="cuda"), 2, False, True)
    assert distances.shape == indices.shape == (0, 2)
