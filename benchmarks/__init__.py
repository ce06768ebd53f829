"""Speed and memory against naive PyTorch and other libraries: ``pytest --benchmark-only``, then ``python -m benchmarks.report``.

On a CUDA device: ``benchmarks/gpu.sh``.
"""
