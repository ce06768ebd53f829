"""Compiles kernels for a GPU generation, as their launchers launch them, without a GPU, and measures what comes out.

A program of its own, since a process that imported triton to interpret kernels cannot compile them::

    python tests/kernels/ahead_of_time.py resources 90   # what every kernel uses on compute capability 9.0
    python tests/kernels/ahead_of_time.py main-loop 90   # what the search's loop over the codes takes
    python tests/kernels/ahead_of_time.py products 90    # the widths of products that addresses are made of

``--json`` prints the tables for a program.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import machine_code
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vqkit.kernels import aggregate, nearest, probe, statistics, straight_through

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHAPE = ("D", "ROWS", "CODES", "DIMS", "LISTS", "MEMBERS", "KEEP", "WHOLE", "PARTS", "GROUP")
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


class Launch(NamedTuple):
    """One kernel as compiled for one launch."""

    kernel: str
    element: str | None
    constants: dict[str, Any]
    compiled: Any


def compiled_argument(value, specialize: bool) -> tuple[str, list]:
    """The type of one launch argument in a kernel's signature, and its attributes."""
    aligned = [["tt.divisibility", 16]]
    if isinstance(value, torch.Tensor):
        return "*" + TYPES.get(value.dtype, f"i{value.dtype.itemsize * 8}"), aligned
    if isinstance(value, float):
        return "fp32", []
    return "i32", aligned if specialize and value % 16 == 0 else []


def compile_launch(kernel, capability: int, arguments: tuple, options: dict) -> Launch:
    values = dict(zip(kernel.arg_names, arguments)) | {k: v for k, v in options.items() if k in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name], attributes[(place,)] = compiled_argument(value, not parameter.do_not_specialize)
    source = ASTSource(kernel, signature, constants, attributes)
    launch = {k: v for k, v in options.items() if k.startswith("num_") or k == "maxnreg"}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    element = signature.get("latents_ptr", signature.get("codes_ptr", signature.get("sums_ptr")))
    return Launch(kernel.__name__, element and element[1:], constants, compiled)


def compile_launches(capability: int, launchers: Callable[[], None], only: str | None = None) -> list[Launch]:
    """Compile what the launchers launch, in place of launching it: every kernel, or one of them."""
    launches, seen = [], set()

    def compile_once(kernel):
        def launch(*arguments, **options):
            key = (kernel.__name__, str(options), tuple(getattr(a, "dtype", None) for a in arguments))
            if key not in seen and only in (None, kernel.__name__):
                seen.add(key)
                launches.append(compile_launch(kernel, capability, arguments, options))

        return launch

    JITFunction.__getitem__ = lambda kernel, grid: compile_once(kernel)
    probe.device_kind = lambda tensor: divmod(capability, 10)
    probe.processors = lambda tensor: 132
    launchers()
    return launches


def search(dtype: torch.dtype, n: int, size: int, d: int, k: int = 1, cosine: bool = False) -> None:
    nearest.nearest_codes(torch.zeros(n, d, dtype=dtype), torch.zeros(size, d, dtype=dtype), k, cosine, True)


def operators(dtype: torch.dtype, n: int, size: int, d: int, k: int, cosine: bool) -> None:
    """Every operator once, on k codes a row; what is cosine in the search is the rotation in straight-through."""
    search(dtype, n, size, d, k, cosine)
    latents, codes = torch.zeros(n, d, dtype=dtype), torch.zeros(size, d, dtype=dtype)
    indices = torch.zeros(n, k, dtype=torch.int64)
    straight_through.straight_through(latents, codes, indices)
    weight = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    straight_through.straight_through_backward(latents, codes, indices, latents, weight, weight, cosine, True)
    statistics.code_statistics(latents, indices[:, 0], size)
    aggregate.aggregate(torch.arange(n + 1), torch.arange(n), torch.zeros(n), latents)


def every_kernel() -> None:
    """Every launcher, for the dtypes, metrics and sizes that compile different kernels."""
    search(torch.float32, 300, 100, 512, 7)
    # What takes the most shared memory.
    search(torch.float32, 20000, 1024, 128)
    search(torch.bfloat16, 20000, 1024, 64, 1, True)
    # Few rows and many codes: what one program cannot search alone.
    search(torch.float32, 1024, 4096, 64)
    search(torch.bfloat16, 1024, 4096, 256)
    search(torch.bfloat16, 100, 4096, 8, 8, True)
    operators(torch.float32, 20000, 1024, 64, 1, False)
    operators(torch.bfloat16, 20000, 8192, 256, 1, True)
    operators(torch.float16, 300, 100, 3, 3, False)
    operators(torch.float64, 300, 1, 1, 1, True)


def searches() -> None:
    """The search over many codes, by one program for all of them and by several."""
    for dtype in (torch.bfloat16, torch.float32):
        for d in (8, 64, 256):
            for n in (20000, 1024):
                search(dtype, n, 8192, d)


# Numbers that are no size of a tile, to be told apart from these.
ROW_LENGTH, CODES_A_ROW = 328, 5


def long_rows() -> None:
    """Every kernel, with rows of ROW_LENGTH elements and CODES_A_ROW codes each."""
    operators(torch.float32, 300, 100, ROW_LENGTH, CODES_A_ROW, True)
    search(torch.bfloat16, 300, 10000, ROW_LENGTH, CODES_A_ROW, False)
    search(torch.float32, 300, 10000, ROW_LENGTH)


def resources(launch: Launch) -> dict:
    """What one kernel takes of the device; ``local`` counts the instructions that reach memory for want of registers."""
    cubin = launch.compiled.asm["cubin"]
    used = machine_code.resources(TOOLS, cubin)
    local = []
    # Without a stack there is nothing to reach.
    if used["stack"]:
        instructions = machine_code.disassemble(TOOLS, cubin)
        flow = machine_code.Flow(instructions)
        local = [flow.repeats(instruction) for instruction in machine_code.local_accesses(instructions)]
    return {
        "kernel": launch.kernel,
        "element": launch.element,
        "shape": " ".join(f"{k}={v}" for k, v in launch.constants.items() if k in SHAPE),
        "warps": launch.compiled.metadata.num_warps,
        **used,
        "shared": launch.compiled.metadata.shared,
        "local": len(local),
        "local in loops": sum(local),
    }


def main_loop(launch: Launch) -> dict:
    """Instructions of one lane for each pair of a row and a code that it scores: all of them, and by kind."""
    sizes, warps = launch.constants, launch.compiled.metadata.num_warps
    instructions = machine_code.disassemble(TOOLS, launch.compiled.asm["cubin"])
    kinds = machine_code.Flow(instructions).tensor_loop().kinds(triton.cdiv(sizes["D"], sizes["DIMS"]))
    pairs = sizes["ROWS"] * sizes["CODES"] / (32 * warps)
    return {
        "element": launch.element,
        "D": sizes["D"],
        "split": not sizes["WHOLE"],
        "tile": f"{sizes['ROWS']}x{sizes['CODES']}x{sizes['DIMS']}",
        "warps": warps,
        "registers": machine_code.resources(TOOLS, launch.compiled.asm["cubin"])["registers"],
        "shared": launch.compiled.metadata.shared,
        "all": round(sum(kinds.values()) / pairs, 2),
        **{kind: round(count / pairs, 2) for kind, count in kinds.items()},
    }


def products(launch: Launch) -> dict:
    """The bits of every integer product with the length of a row, in Triton's intermediate language: of latents, and of indices."""
    text = launch.compiled.asm["ttir"]
    constants = dict(re.findall(r"(%\w+) = arith\.constant (?:dense<)?(-?\d+)>? : ", text))
    bits = {str(ROW_LENGTH): set(), str(CODES_A_ROW): set()}
    for *factors, kind in re.findall(r"= arith\.muli (%\w+), (%\w+) : (?:tensor<[\dx]+x)?i(\d+)", text):
        for factor in factors:
            bits.get(constants.get(factor), set()).add(int(kind))
    return {"kernel": launch.kernel, "elements": sorted(bits[str(ROW_LENGTH)]), "codes": sorted(bits[str(CODES_A_ROW)])}


REPORTS = {
    "resources": (resources, every_kernel, None),
    "main-loop": (main_loop, searches, "_search_kernel"),
    "products": (products, long_rows, None),
}


def table(rows: list[dict]) -> str:
    columns = list(rows[0])
    widths = [max(len(str(row[c])) for row in [dict(zip(columns, columns)), *rows]) for c in columns]
    lines = [columns, *([row[c] for c in columns] for row in rows)]
    return "\n".join("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    report, launchers, only = REPORTS[sys.argv[1]]
    measured = [report(launch) for launch in compile_launches(int(sys.argv[2]), launchers, only)]
    print(json.dumps(measured) if "--json" in sys.argv else table(measured))
