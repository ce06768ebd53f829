"""Every kernel compiles for every supported GPU generation, as its launcher launches it, and takes no more than it did.

Tensors of more than 2^31 elements, which the interpreter cannot go through, are looked after here too: by the width of the
products that make an address.

The budgets are what Triton 3.7 and its assembler make of the kernels, measured without a GPU by ``ahead_of_time.py``: a change
that costs registers, spills or instructions fails here, and one that saves them should lower its budget.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90, 100)

# Registers a thread, the most that any launch for any generation takes, rounded up to the eight in which they are handed out.
REGISTERS = {
    "_centre_kernel": 80,
    "_prepare_kernel": 96,
    # The most there is: for a second program of eight warps on a multiprocessor it would have to be 128.
    "_search_kernel": 255,
    "_merge_kernel": 64,
    "_exhaust_kernel": 168,
    "_collect_kernel": 144,
    "_measure_kernel": 96,
    "_forward_kernel": 48,
    "_backward_kernel": 152,
    "_pieces_kernel": 232,
    "_combine_kernel": 184,
}
# Bytes a thread; a tile that does not fit in registers takes thousands.
LARGEST_STACK = 48
# Instructions that reload or store what did not fit in registers: none in a loop, but for these. sm_80: one a tile of codes in
# the search of float32, and three a tile in the exhaustive search; sm_90: two there; sm_100: ten in the bfloat16 cosine search
# at D 256.
SPILLS_IN_LOOPS = {
    (80, "_search_kernel"): 1,
    (80, "_exhaust_kernel"): 3,
    (90, "_exhaust_kernel"): 2,
    (100, "_search_kernel"): 10,
}
# Anywhere: the rest are values that wait out a loop.
SPILLS = 24

# Instructions of one lane for each pair of a row and a code in the search's loop over the codes, and registers, as measured: by
# element, D and whether several programs share the codes. spec/kernels.md wants 2.4 .. 3.5 at D 64 in bfloat16. Of the 13.8 that
# sm_90 takes there, about 8 rank (the least cost, its column, and the second least each go through all pairs), the rest are
# addresses and masks. float32 takes that and D / 32 times the splitting of a chunk of codes, which every block of rows repeats.
MAIN_LOOP = {
    80: {
        ("bf16", 16, False): (14.84, 164), ("bf16", 16, True): (12.34, 150),
        ("bf16", 64, False): (16.44, 224), ("bf16", 64, True): (14.14, 168),
        ("bf16", 256, False): (45.88, 255), ("bf16", 256, True): (45.55, 255),
        ("fp32", 16, False): (25.44, 124), ("fp32", 16, True): (25.69, 126),
        ("fp32", 64, False): (47.38, 255), ("fp32", 64, True): (47.69, 255),
        ("fp32", 256, False): (129.91, 255), ("fp32", 256, True): (130.59, 255),
    },
    90: {
        ("bf16", 16, False): (13.25, 190), ("bf16", 16, True): (15.19, 168),
        ("bf16", 64, False): (13.84, 222), ("bf16", 64, True): (16.14, 213),
        ("bf16", 256, False): (39.86, 204), ("bf16", 256, True): (44.62, 253),
        ("fp32", 16, False): (24.12, 120), ("fp32", 16, True): (24.62, 144),
        ("fp32", 64, False): (46.84, 216), ("fp32", 64, True): (48.06, 234),
        ("fp32", 256, False): (139.81, 220), ("fp32", 256, True): (140.75, 238),
    },
    100: {
        ("bf16", 16, False): (13.86, 255), ("bf16", 16, True): (11.28, 227),
        ("bf16", 64, False): (14.41, 225), ("bf16", 64, True): (12.19, 231),
        ("bf16", 256, False): (39.69, 246), ("bf16", 256, True): (40.12, 255),
        ("fp32", 16, False): (25.66, 126), ("fp32", 16, True): (26.81, 144),
        ("fp32", 64, False): (43.5, 138), ("fp32", 64, True): (45.44, 178),
        ("fp32", 256, False): (128.84, 154), ("fp32", 256, True): (130.25, 178),
    },
}  # fmt: skip
# What a change elsewhere in a kernel does to the assembler's choices.
ROOM = 1.03
MORE_REGISTERS = 8

# Kernels that go to rows of latents or codes, and to rows of indices. Those that merge lists know no length of the former.
MULTIPLY_BY_ELEMENTS = set(REGISTERS) - {"_merge_kernel", "_collect_kernel"}
MULTIPLY_BY_CODES = set(REGISTERS) - {"_centre_kernel", "_prepare_kernel", "_pieces_kernel", "_combine_kernel"}


def compile_in_process(report: str, capability: int, cache: Path) -> list[dict]:
    """What ``ahead_of_time.py`` reports; nothing compiled before, and nothing interpreted."""
    pytest.importorskip("triton", minversion="3.3", reason="compiles kernels with the interface of Triton 3.3 and later")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, ROOT / "tests/kernels/ahead_of_time.py", report, str(capability), "--json"]
    process = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout)


def table(rows: list[dict]) -> str:
    return "\n".join(["", "  ".join(rows[0]), *("  ".join(map(str, row.values())) for row in rows)])


def budgets_apply() -> bool:
    import triton

    return triton.__version__.startswith("3.7.")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_without_spills(capability, tmp_path):
    rows = compile_in_process("resources", capability, tmp_path)
    print(f"\nsm_{capability}{table(rows)}")
    assert {row["kernel"] for row in rows} == set(REGISTERS)
    assert max(row["stack"] for row in rows) <= LARGEST_STACK, table(rows)
    if not budgets_apply():
        pytest.skip("registers and spills are budgeted for the assembler of Triton 3.7; the kernels compile")
    for row in rows:
        assert row["registers"] <= REGISTERS[row["kernel"]], row
        assert row["local"] <= SPILLS, row
        assert row["local in loops"] <= SPILLS_IN_LOOPS.get((capability, row["kernel"]), 0), row


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_instructions_for_each_pair_of_the_search(capability, tmp_path):
    rows = compile_in_process("main-loop", capability, tmp_path)
    print(f"\nsm_{capability}{table(rows)}")
    assert {(row["element"], row["D"], row["split"]) for row in rows} == set(MAIN_LOOP[capability])
    for row in rows:
        # A product that left the tensor cores would be counted in another loop, or in none.
        assert row["tensor"] > 0, row
    if not budgets_apply():
        pytest.skip("instructions are budgeted for the assembler of Triton 3.7; the loops were found")
    for row in rows:
        instructions, registers = MAIN_LOOP[capability][row["element"], row["D"], row["split"]]
        assert row["all"] <= ROOM * instructions, (row, instructions)
        assert row["registers"] <= registers + MORE_REGISTERS, (row, registers)


def test_rows_are_found_in_64_bits(tmp_path):
    """No product of a row number and a row length wraps at 2^31."""
    rows = compile_in_process("products", 90, tmp_path)
    assert {row["kernel"] for row in rows} == set(REGISTERS)
    for length, kernels in (("elements", MULTIPLY_BY_ELEMENTS), ("codes", MULTIPLY_BY_CODES)):
        assert {row["kernel"] for row in rows if row[length]} == kernels
        assert all(row[length] in ([], [64]) for row in rows), table(rows)
