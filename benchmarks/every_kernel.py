"""``python -m benchmarks.every_kernel``: run every kernel once in every dtype on small odd shapes, for a memory checker to watch.

compute-sanitizer --tool memcheck python -m benchmarks.every_kernel

PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor an allocation of its own, so that what is read or written beside one shows.
"""

import argparse

import torch

import vqkit
from vqkit import native, ops

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_N, _K, _D = 130, 37, 19
_FEW, _MANY, _LONG = 29, 2061, 261


def run(device: str) -> list[str]:
    """Run what Triton serves and, where it is built, the CUDA search; returns what ran, a line each."""
    lines = []
    torch.manual_seed(0)
    for dtype in _DTYPES:
        latents, codes = (torch.randn(rows, _D, device=device).to(dtype).requires_grad_() for rows in (_N, _K))
        with vqkit.use_backend("triton"):
            _search(latents, codes)
            _differentiable(latents, codes)
        lines.append(f"triton: all operators in {dtype}")
        if native.cuda_rejects(latents, codes) is None:
            with vqkit.use_backend("cuda"):
                _search(latents, codes)
            lines.append(f"cuda: search in {dtype}")
    if device != "cpu":
        torch.cuda.synchronize()
    return lines


def _search(latents, codes):
    for metric in ("l2", "cosine"):
        for k in (1, 3):
            ops.nearest_codes(latents, codes, k, metric=metric)
    # Every code many times: several programs share the codes of a row, and no row is certain, so all are searched exhaustively too.
    many = codes.repeat(_MANY // _K + 1, 1)[:_MANY]
    for k in (1, 3):
        ops.nearest_codes(latents[:_FEW], many, k)
    # Rows too long to stay in shared memory.
    ops.nearest_codes(latents.repeat(1, _LONG // _D + 1)[:_FEW, :_LONG], codes.repeat(1, _LONG // _D + 1)[:, :_LONG], 1)


def _differentiable(latents, codes):
    indices = torch.randint(_K, (_N, 2), device=latents.device)
    indices[::7, 0] = -1
    for gradient in ("straight_through", "rotation"):
        quantized, commitment, codebook = ops.straight_through(latents, codes, indices, gradient=gradient)
        torch.autograd.grad(quantized.sum() + commitment + codebook, (latents, codes))
    # One code, and one node, has more members than fit in one piece.
    many = torch.cat([indices[:, 1], torch.zeros(600, dtype=torch.int64, device=latents.device)])
    ops.code_statistics(latents.detach().repeat(6, 1)[: len(many)], many, _K)
    hub = torch.stack([torch.zeros(599, dtype=torch.int64), torch.arange(1, 600)], 1)
    features = latents.detach().repeat(5, 1)[:600].requires_grad_()
    torch.autograd.grad(ops.aggregate(ops.Graph.from_edges(hub, 600).to(latents.device), features).sum(), features)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.every_kernel", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    print("\n".join(run(parser.parse_args().device)))
