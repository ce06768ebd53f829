"""``python -m benchmarks.exactness``: how often searches return a code that is not the nearest, on data that is hard for them.

A method is wrong in a row if the float64 distance to the code that it returned exceeds the least one by more than the rounding of
float64, or if that code has an equal of lower index. The exit status is 1 if vqkit is wrong anywhere.
"""

import argparse
import datetime
import importlib.util
import pathlib
import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

from benchmarks import naive
from vqkit.__main__ import device_line
from vqkit.ops.nearest import OPERATOR, nearest_code

SEED = 0
ROWS = 4096
SHAPES = ((1024, 4), (16384, 8), (8192, 32), (1024, 64), (8192, 256))
PEERS = {"faiss": "faiss-cpu", "vector_quantize_pytorch": "vector-quantize-pytorch"}
# float64 distances at a time.
_BLOCK = 1 << 22

Search = Callable[[Tensor, Tensor], Tensor]
Method = tuple[str, str]  # name, device
Counts = dict[tuple[int, int], dict[Method, list[int]]]  # (K, D) -> method -> wrong rows for each of DATA


def _gaussian(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, dim), torch.randn(size, dim)


def _offset(n: int, size: int, dim: int, by: float) -> tuple[Tensor, Tensor]:
    latents, codes = _gaussian(n, size, dim)
    return latents + by, codes + by


def _untrained(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, dim), torch.empty(size, dim).uniform_(-1 / size, 1 / size)


def _duplicated(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    latents, codes = _gaussian(n, size, dim)
    return latents, codes[torch.randint(-(-size // 4), (size,))]


def _outlier(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    latents, codes = _gaussian(n, size, dim)
    codes[size // 2] *= 1e6
    return latents, codes


def _scales(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Lengths from 1e-6 to 1e3 side by side, in latents and codes alike."""
    latents, codes = _gaussian(n, size, dim)
    return latents * torch.logspace(-6, 3, n)[:, None], codes * torch.logspace(-6, 3, size)[:, None]


def _latents_are_codes(n: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    codes = torch.randn(size, dim)
    return codes[torch.randint(size, (n,))], codes


def _cast(n: int, size: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    latents, codes = _gaussian(n, size, dim)
    return latents.to(dtype), codes.to(dtype)


# N, K, D -> latents (N, D), codes (K, D); float32 unless the name says otherwise.
DATA: dict[str, Callable[[int, int, int], tuple[Tensor, Tensor]]] = {
    "Gaussian": _gaussian,
    "offset +20": partial(_offset, by=20.0),
    "offset +1000": partial(_offset, by=1000.0),
    "codes U(-1/K, 1/K)": _untrained,
    "duplicated codes": _duplicated,
    "one code far away": _outlier,
    "scales 1e-6..1e3": _scales,
    "latents that are codes": _latents_are_codes,
    "fp16 input": partial(_cast, dtype=torch.float16),
    "bf16 input": partial(_cast, dtype=torch.bfloat16),
}


def _cdist(latents: Tensor, codes: Tensor) -> Tensor:
    return naive.cdist_argmin(latents.float(), codes.float())


def _expanded(latents: Tensor, codes: Tensor) -> Tensor:
    squares = latents.square().sum(-1, keepdim=True), codes.square().sum(-1)
    return (squares[0] - 2 * latents @ codes.T + squares[1]).argmin(-1)


def _score(latents: Tensor, codes: Tensor) -> Tensor:
    latents, codes = latents.float(), codes.float()
    return (latents @ codes.T - codes.square().sum(-1) / 2).argmax(-1)


def _score_tf32(latents: Tensor, codes: Tensor) -> Tensor:
    torch.set_float32_matmul_precision("high")
    try:
        return _score(latents, codes)
    finally:
        torch.set_float32_matmul_precision("highest")


def _score_autocast(latents: Tensor, codes: Tensor) -> Tensor:
    with torch.autocast(latents.device.type, torch.bfloat16):
        return _score(latents, codes)


def _score_bf16(latents: Tensor, codes: Tensor) -> Tensor:
    """As a tensor core has it: the operands lose their low bits, products are exact and sums are float32."""
    products = latents.bfloat16().float() @ codes.bfloat16().float().T
    return (products - codes.float().square().sum(-1) / 2).argmax(-1)


def _faiss(latents: Tensor, codes: Tensor, faiss: ModuleType) -> Tensor:
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.float().numpy())
    return torch.from_numpy(index.search(latents.float().numpy(), 1)[1][:, 0])


@torch.no_grad()
def _vector_quantize(latents: Tensor, codes: Tensor, peer: ModuleType) -> Tensor:
    quantizer = peer.VectorQuantize(codes.shape[1], codes.shape[0]).to(latents.device).eval()
    quantizer.codebook = codes.float()
    return quantizer(latents.float()[None])[1][0]


PLAIN: dict[str, Search] = {
    "torch.cdist + argmin, fp32": _cdist,
    "x² - 2xc + c², in the input's dtype": _expanded,
    "x.c - h, fp32": _score,
    "x.c - h, bf16 operands, fp32 sums": _score_bf16,
    "x.c - h, bf16 autocast": _score_autocast,
}


def methods() -> dict[Method, Search]:
    """Everything that runs here; the names of vqkit's own begin with "vqkit"."""
    found: dict[Method, Search] = {}
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for backend, refusal in OPERATOR.refusals((torch.zeros(1, 1, device=device),)).items():
            if refusal() is None:
                found[f"vqkit, {backend}", device] = partial(nearest_code, backend=backend)
        found |= {(name, device): search for name, search in PLAIN.items()}
        if device == "cuda":
            found["x.c - h, tf32", device] = _score_tf32
        elif importlib.util.find_spec("faiss"):
            found["faiss IndexFlatL2, fp32", device] = partial(_faiss, faiss=importlib.import_module("faiss"))
        if importlib.util.find_spec("vector_quantize_pytorch"):
            peer = importlib.import_module("vector_quantize_pytorch")
            found["vector-quantize-pytorch, fp32", device] = partial(_vector_quantize, peer=peer)
    return found


class Oracle:
    """The float64 distances of one data set by sums over D, which cancel nothing, and which codes are copies of an earlier one."""

    def __init__(self, latents: Tensor, codes: Tensor):
        self._latents, self._codes = latents.double(), codes.double()
        blocks = self._latents.split(max(1, _BLOCK // len(codes)))
        direct = partial(torch.cdist, x2=self._codes, compute_mode="donot_use_mm_for_euclid_dist")
        least = torch.cat([direct(block).amin(-1) for block in blocks])
        # Both distances that are compared carry an error of at most (D + 4) / 2 roundings.
        self._limit = least * (1 + (codes.shape[1] + 4) * torch.finfo(torch.float64).eps)
        distinct, group = self._codes.unique(dim=0, return_inverse=True)
        places = torch.arange(len(codes), device=codes.device)
        self._first = places.new_full((len(distinct),), len(codes)).scatter_reduce(0, group, places, "amin")[group]

    def wrong(self, indices: Tensor) -> int:
        """In how many rows ``indices`` (N,) is not the nearest code, or not the first of its copies. No index at all, -1, is wrong."""
        chosen = indices.clamp(min=0)
        distance = (self._latents - self._codes[chosen]).square().sum(-1).sqrt()
        return int(((indices < 0) | (distance > self._limit) | (self._first[chosen] < chosen)).sum())


def measure(n: int, shapes: Sequence[tuple[int, int]], seed: int) -> Counts:
    """The wrong rows among ``n`` latents, for every (K, D), method and kind of data."""
    searches = methods()
    counts = {shape: {method: [] for method in searches} for shape in shapes}
    for size, dim in shapes:
        for make in DATA.values():
            torch.manual_seed(seed)
            latents, codes = make(n, size, dim)
            for device in dict.fromkeys(device for _, device in searches):
                here = latents.to(device), codes.to(device)
                oracle = Oracle(*here)
                for method, search in searches.items():
                    if method[1] == device:
                        counts[size, dim][method].append(oracle.wrong(search(*here)))
    return counts


def _percentage(wrong: int, rows: int) -> str:
    return f"{100 * wrong / rows:.2g} %" if 0 < wrong < rows / 10 else f"{100 * wrong / rows:.0f} %" if wrong else "0"


def _table(counts: dict[Method, list[int]], rows: int) -> list[str]:
    lines = ["| method | on | " + " | ".join(DATA) + " |", "| --- | --- |" + " ---: |" * len(DATA)]
    for (name, device), wrong in counts.items():
        cells = [f"**{name}**" if name.startswith("vqkit") else name, device, *(_percentage(each, rows) for each in wrong)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(counts: Counts, n: int, seed: int) -> str:
    """What ``measure`` counted as Markdown: a table over all shapes, then one for each."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    packages = ["vqkit", "torch", *(package for module, package in PEERS.items() if importlib.util.find_spec(module))]
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    tables = list(counts.values())
    total = {method: [sum(each) for each in zip(*(table[method] for table in tables))] for method in tables[0]}
    lines = [
        f"{' and '.join(device_line(torch.device(device)) for device in devices)}; Python {platform.python_version()}, {versions}; "
        f"seed {seed}; {datetime.date.today()}.",
        "",
        f"The share of rows whose code is not a float64-nearest one, of {n} latents a table; h = c² / 2.",
        "",
        "All shapes together:",
        "",
        *_table(total, n * len(tables)),
    ]
    for (size, dim), shape in counts.items():
        lines += ["", f"K = {size}, D = {dim}:", "", *_table(shape, n)]
    return "\n".join(lines)


def mistakes(counts: Counts) -> list[str]:
    """Where vqkit is wrong, a line each."""
    return [
        f"{name} on {device}: {wrong} rows wrong, {case}, K = {size}, D = {dim}"
        for (size, dim), shape in counts.items()
        for (name, device), row in shape.items()
        for case, wrong in zip(DATA, row)
        if wrong and name.startswith("vqkit")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="write the tables to this file too")
    out = parser.parse_args().out
    counts = measure(ROWS, SHAPES, SEED)
    text = report(counts, ROWS, SEED)
    print(text)
    if out:
        out.write_text(text + "\n")
    if found := mistakes(counts):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
