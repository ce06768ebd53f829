"""What NVIDIA's disassembler shows of a compiled kernel: its instructions, its loops, and what it keeps in local memory.

A loop is found by control flow, not by the addresses between a backward branch and its target: code that waits for a barrier
is often moved behind the end of the kernel, and jumps back into a loop whose beginning it is not.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# What a mnemonic does, by its beginning; the first that fits. Anything else is arithmetic.
KINDS = {
    "tensor": ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "DMMA"),
    "select": ("FMNMX", "IMNMX", "VIMNMX", "FSEL", "SEL", "FSETP", "ISETP"),
    "memory": ("LD", "ST", "ATOM", "RED.", "UTMA", "UBLKCP", "SHFL"),
    "control": (
        "BRA", "BAR", "BSSY", "BSYNC", "SYNCS", "WARP", "NOP", "EXIT", "DEPBAR", "ELECT", "FENCE", "MEMBAR", "UTCBAR", "CALL", "RET",
    ),
}  # fmt: skip
_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


class Instruction(NamedTuple):
    """One line of the disassembly; ``predicate`` is None where it is always carried out."""

    address: int
    predicate: str | None
    name: str
    operands: str


class Loop(NamedTuple):
    """The instructions that one turn can carry out, those of an inner loop around the same instruction apart."""

    outside: list[Instruction]
    inner: list[Instruction]

    def kinds(self, chunks: int) -> dict[str, int]:
        """How many instructions of each kind a turn takes at most, where it multiplies ``chunks`` chunks on the tensor cores."""
        outer, inner = (Counter(map(kind, part)) for part in (self.outside, self.inner))
        # Without an inner loop there is one chunk, or the compiler wrote them all out.
        if inner and chunks == 1:
            raise ValueError(f"expected an inner loop for several chunks only, got {len(self.inner)} instructions for {chunks}")
        # A compiler that overlaps turns moves chunks out of the inner loop, as many as their tensor instructions tell.
        turns = chunks - outer["tensor"] // inner["tensor"] if inner else 0
        return {name: outer[name] + turns * inner[name] for name in (*KINDS, "arithmetic")}


def kind(instruction: Instruction) -> str:
    return next((kind for kind, names in KINDS.items() if instruction.name.startswith(names)), "arithmetic")


def _tool(tools: Path, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout


def resources(tools: Path, cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack a thread."""
    used = dict(re.findall(r"(REG|STACK):(\d+)", _tool(tools, "--dump-resource-usage", cubin)))
    return {"registers": int(used["REG"]), "stack": int(used["STACK"])}


def parse(text: str) -> list[Instruction]:
    found = (_LINE.match(line) for line in text.splitlines())
    return [Instruction(int(m[1], 16), m[2], m[3], m[4]) for m in found if m]


def disassemble(tools: Path, cubin: bytes) -> list[Instruction]:
    instructions = parse(_tool(tools, "-sass", cubin))
    if not instructions:
        raise ValueError("cuobjdump showed no instructions that machine_code.parse can read")
    return instructions


class Flow:
    """Which instruction can follow which."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = {i.address: i for i in instructions}
        self.after: dict[int, set[int]] = {address: set() for address in self.instructions}
        self.before: dict[int, set[int]] = {address: set() for address in self.instructions}
        for here, following in zip(instructions, [*instructions[1:], None]):
            for address in self._successors(here, following):
                self.after[here.address].add(address)
                self.before[address].add(here.address)
        first = instructions[0].address
        # Padding falls through into the code behind it, but nothing arrives there.
        self.reached = {first} | self._reach(first, self.after, set(self.instructions))

    @staticmethod
    def _successors(here: Instruction, following: Instruction | None) -> Iterable[int]:
        operation = here.name.split(".")[0]
        if operation in ("BRX", "JMX"):
            raise ValueError(f"{here}: a computed jump can go anywhere")
        # The condition of a branch is its predicate or an operand before the target.
        always = here.predicate is None and "," not in here.operands
        # A call that does not return is how compilers for sm_80 leave a loop.
        if operation in ("BRA", "CALL") and "0x" in here.operands:
            yield int(re.search(r"0x([0-9a-f]+)$", here.operands)[1], 16)
        if following and not (always and operation in ("BRA", "EXIT", "RET")):
            yield following.address

    @staticmethod
    def _reach(start: int, steps: dict[int, set[int]], within: set[int]) -> set[int]:
        reached, waiting = set(), [start]
        while waiting:
            for address in (steps[waiting.pop()] & within) - reached:
                reached.add(address)
                waiting.append(address)
        return reached

    def _cycle(self, address: int, within: set[int]) -> set[int]:
        """What the instruction leads to and comes from: the largest loop around it, nothing where there is none."""
        return self._reach(address, self.after, within) & self._reach(address, self.before, within)

    def repeats(self, instruction: Instruction) -> bool:
        """Whether the instruction stands in a loop."""
        return bool(self._cycle(instruction.address, self.reached))

    def loop(self, instruction: Instruction) -> Loop:
        """The outermost loop around an instruction, and the next one within."""
        body = self._cycle(instruction.address, self.reached)
        entries = {address for address in body if (self.before[address] & self.reached) - body}
        if len(entries) != 1:
            raise ValueError(f"{instruction}: expected a loop with one entry, got {len(entries)}")
        inner = self._cycle(instruction.address, body - entries)
        return Loop([self.instructions[a] for a in sorted(body - inner)], [self.instructions[a] for a in sorted(inner)])

    def tensor_loop(self) -> Loop:
        """The loop that holds tensor-core instructions, of which those before it may compute its first turn."""
        loops = [self.loop(i) for i in self.instructions.values() if kind(i) == "tensor" and self.repeats(i)]
        if len({loop.outside[0].address for loop in loops}) != 1:
            raise ValueError(f"expected tensor-core instructions in one loop, got {len(loops)} of them in any")
        return max(loops, key=lambda loop: len(loop.inner))


def local_accesses(instructions: list[Instruction]) -> list[Instruction]:
    """Loads and stores of what a thread could not keep in registers."""
    return [i for i in instructions if i.name.startswith(("LDL", "STL"))]
