"""Every kernel compiles for every supported GPU generation, as its launcher launches it, without a GPU.

Run as a program with a compute capability it prints what the kernels use: ``python tests/kernels/test_ahead_of_time.py 90``.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {
    "_centre_kernel",
    "_prepare_kernel",
    "_search_kernel",
    "_merge_kernel",
    "_exhaust_kernel",
    "_collect_kernel",
    "_measure_kernel",
    "_forward_kernel",
    "_backward_kernel",
    "_pieces_kernel",
    "_combine_kernel",
}
# Bytes a thread; a tile that does not fit in registers takes thousands.
LARGEST_STACK = 128


def compiled_argument(value, specialize: bool) -> tuple[str, list]:
    """The type of one launch argument in a kernel's signature, and its attributes."""
    import torch

    aligned = [["tt.divisibility", 16]]
    if isinstance(value, torch.Tensor):
        names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
        return "*" + names.get(value.dtype, f"i{value.dtype.itemsize * 8}"), aligned
    if isinstance(value, float):
        return "fp32", []
    return "i32", aligned if specialize and value % 16 == 0 else []


def compile_launch(kernel, capability: int, arguments: tuple, options: dict) -> dict:
    """Compile one launch and measure its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = dict(zip(kernel.arg_names, arguments)) | {k: v for k, v in options.items() if k in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name], attributes[(place,)] = compiled_argument(value, not parameter.do_not_specialize)
    source = ASTSource(kernel, signature, constants, attributes)
    launch = {k: v for k, v in options.items() if k.startswith("num_")}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    used = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage))
    shape = " ".join(f"{k}={v}" for k, v in constants.items() if k in ("D", "ROWS", "CODES", "DIMS", "LISTS", "MEMBERS", "KEEP", "WHOLE", "PARTS"))
    element = signature.get("latents_ptr", signature.get("codes_ptr", signature.get("sums_ptr")))
    return {
        "kernel": kernel.__name__,
        "element": element,
        "shape": shape,
        "warps": compiled.metadata.num_warps,
        "registers": int(used["REG"]),
        "stack": int(used["STACK"]),
        "shared": compiled.metadata.shared,
    }


def run_launchers() -> None:
    """Call every launcher, for the dtypes, metrics and sizes that compile different kernels."""
    import torch

    from vqkit.kernels import aggregate, nearest, statistics, straight_through

    cases = (
        (torch.float32, 20000, 1024, 64, 1, False),
        (torch.bfloat16, 20000, 8192, 256, 1, True),
        (torch.float16, 300, 100, 3, 3, False),
        (torch.float64, 300, 1, 1, 1, True),
    )
    nearest.nearest_codes(torch.zeros(300, 512), torch.zeros(100, 512), 7, False, True)
    # Few rows and many codes: what one program cannot search alone.
    nearest.nearest_codes(torch.zeros(1024, 64), torch.zeros(4096, 64), 1, False, True)
    nearest.nearest_codes(torch.zeros(1024, 256, dtype=torch.bfloat16), torch.zeros(4096, 256, dtype=torch.bfloat16), 1, False, True)
    nearest.nearest_codes(torch.zeros(100, 8, dtype=torch.bfloat16), torch.zeros(4096, 8, dtype=torch.bfloat16), 8, True, True)
    for dtype, n, size, d, k, cosine in cases:
        latents, codes = torch.zeros(n, d, dtype=dtype), torch.zeros(size, d, dtype=dtype)
        nearest.nearest_codes(latents, codes, k, cosine, True)
        indices = torch.zeros(n, k, dtype=torch.int64)
        straight_through.straight_through(latents, codes, indices)
        weight = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        straight_through.straight_through_backward(latents, codes, indices, latents, weight, weight, cosine, True)
        statistics.code_statistics(latents, indices[:, 0], size)
        aggregate.aggregate(torch.arange(n + 1), torch.arange(n), torch.zeros(n), latents)


def compile_all(capability: int) -> list[dict]:
    """Compile what the launchers launch, in place of launching it."""
    from triton.runtime.jit import JITFunction

    from vqkit.kernels import probe

    rows, seen = [], set()

    def compile_once(kernel):
        def launch(*arguments, **options):
            key = (kernel.__name__, str(options), tuple(getattr(a, "dtype", None) for a in arguments))
            if key not in seen:
                seen.add(key)
                rows.append(compile_launch(kernel, capability, arguments, options))

        return launch

    JITFunction.__getitem__ = lambda kernel, grid: compile_once(kernel)
    probe.device_kind = lambda tensor: divmod(capability, 10)
    probe.processors = lambda tensor: 132
    run_launchers()
    return rows


def table(rows: list[dict]) -> str:
    columns = list(rows[0])
    widths = [max(len(str(row[c])) for row in [dict(zip(columns, columns)), *rows]) for c in columns]
    lines = [columns, *([row[c] for c in columns] for row in rows)]
    return "\n".join("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths)) for line in lines)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles(capability, tmp_path):
    pytest.importorskip("triton", minversion="3.3", reason="compiles kernels with the interface of Triton 3.3 and later")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, __file__, str(capability), "--json"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr[-4000:]
    rows = json.loads(process.stdout)
    print(f"\nsm_{capability}\n{table(rows)}")
    assert {row["kernel"] for row in rows} == KERNELS
    assert max(row["stack"] for row in rows) <= LARGEST_STACK, table(rows)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    measured = compile_all(int(sys.argv[1]))
    print(json.dumps(measured) if "--json" in sys.argv else table(measured))
