"""Swap other libraries' quantizers inside a model for ours, in place, and back."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn

import vqkit.compat
from vqkit.compat.replacement import FORWARD_HOOKS, NotReplaceable, find_replacement, registered
from vqkit.quantizers import Quantizer

_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


@dataclass(frozen=True)
class Row:
    """What happened to one module: where it is, its class, the class it was replaced by (None: it was left), and why or how."""

    path: str
    found: str
    replacement: str | None
    note: str


@dataclass
class Report:
    """A row for every quantizer that was found; printing it gives a table."""

    rows: list[Row] = field(default_factory=list)

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self.rows if row.replacement is not None]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if row.replacement is None]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "no quantizer that vqkit knows was found"
        table = [("path", "class", "now", "note")]
        table += [(row.path, row.found, row.replacement or "(left)", row.note) for row in self.rows]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        return "\n".join("  ".join((*(cell.ljust(width) for cell, width in zip(line, widths)), line[3])).rstrip() for line in table)


def accelerate(model: nn.Module) -> Report:
    """Replace the quantizers that other libraries put into ``model`` by ours, in place.

    A quantizer is known by its class: by the full path for installed libraries, and by the bare name for code that people copy, such as
    taming's ``VectorQuantizer2``. Before it is swapped, copies of both run on a small random input: results, gradients and, where it is
    determined, what the codebook has learned must agree, so that a changed copy stays as it is. Classes derived from a known one are left.

    Kept are weights, buffers, train or eval mode, device, dtype, ``requires_grad``, the names of the state dict, and forward and backward
    hooks, whose handles stay valid. Parameters are the very same objects, so that an optimizer or a data parallel wrapper built before goes
    on; only codes that no gradient trains (running means) are copied into buffers of ours. A module that is used in several places is
    replaced once. What cannot be kept (a patched ``forward``, hooks on the state dict or on an inner part that ours does not call) leaves
    the module as it is, with the reason in the report. Random number generators are not touched.

    Call it before ``torch.compile`` and sharding wrappers. References to a quantizer from outside of the module tree keep the original.

    model: any module. If it is a quantizer itself, it cannot be swapped in place, though its parts can: take the module that holds it.
    Returns a ``Report``: ``print`` gives a table; ``replaced`` and ``left`` are its rows. ``restore`` goes back.
    """
    for part in pkgutil.iter_modules(vqkit.compat.__path__):
        importlib.import_module(f"vqkit.compat.{part.name}")
    report = Report()
    if _known(model):
        note = "it is the model itself, which cannot be swapped in place: call accelerate on the module that holds it"
        report.rows.append(Row("(model)", _name(model), None, note))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        _swap(model, "", {}, set(), report)
    return report


def restore(model: nn.Module) -> Report:
    """Put the originals that ``accelerate`` replaced back into ``model``, with the weights learned meanwhile.

    Parameters are the very same objects, buffers are moved over, mode, hooks and plain settings (numbers, strings) are those of now.
    Returns a ``Report`` of what was put back.
    """
    report, done = Report(), {}
    for parent, name, path in list(_children(model, "", set())):
        ours = parent._modules[name]
        if "_vqkit_original" not in vars(ours):
            continue
        if ours not in done:
            done[ours] = _original(ours)
        parent._modules[name] = done[ours]
        report.rows.append(Row(path, _name(ours), _name(done[ours]), "restored"))
    return report


def _swap(parent: nn.Module, prefix: str, done: dict[nn.Module, tuple[nn.Module | None, str]], seen: set, report: Report) -> None:
    seen.add(parent)
    for name, module in parent._modules.items():
        if module is None:
            continue
        path = f"{prefix}{name}"
        if _known(module):
            if module in done:
                ours, note = done[module][0], f"the same module as {done[module][1]}"
            else:
                ours, note = _replacement(module)
                done[module] = ours, path
            report.rows.append(Row(path, _name(module), None if ours is None else _name(ours), note))
            if ours is not None:
                # In the dict itself: the order stays, and so do wrappers that refuse assignment.
                parent._modules[name] = ours
                continue
        if module not in seen and type(module).__module__.partition(".")[0] != "vqkit":
            _swap(module, f"{path}.", done, seen, report)


def _children(parent: nn.Module, prefix: str, seen: set) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name, path) of every module below, each parent once."""
    seen.add(parent)
    for name, module in parent._modules.items():
        if module is not None:
            yield parent, name, f"{prefix}{name}"
            if module not in seen:
                yield from _children(module, f"{prefix}{name}.", seen)


def _known(module: nn.Module) -> bool:
    """Whether its class, or one that it derives from, is in the register."""
    return not _ours(type(module)) and any(registered(cls) for cls in type(module).__mro__)


def _ours(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == "vqkit" for base in cls.__mro__)


def _replacement(module: nn.Module) -> tuple[nn.Module | None, str]:
    """What takes the module's place, None for nothing, and the note of the report."""
    build = find_replacement(module)
    if build is None:
        base = next(cls for cls in type(module).__mro__ if registered(cls))
        return None, f"derived from {base.__module__}.{base.__qualname__}, and may do something else"
    try:
        if "forward" in vars(module):
            raise NotReplaceable("its forward is patched on the instance")
        if any(getattr(module, name, None) for name in _STATE_HOOKS):
            raise NotReplaceable("it has hooks on its state dict")
        ours = build(module)
        _check_inner_hooks(module, ours)
    except NotReplaceable as reason:
        return None, str(reason)
    for name in (*FORWARD_HOOKS, "_is_full_backward_hook"):
        setattr(ours, name, getattr(module, name))
    # Not a submodule: its state is that of ours.
    object.__setattr__(ours, "_vqkit_original", module)
    kept = set(ours.parameters())
    return ours, "the same parameters" if kept and kept.issuperset(module.parameters()) else "the codes copied, which no gradient trains"


def _check_inner_hooks(module: nn.Module, ours: nn.Module) -> None:
    """Raise NotReplaceable for hooks on an inner part that ours has not, or reads without calling it."""
    called = {part for part in ours.modules() if type(part) is not nn.Embedding}
    for name, part in module.named_modules():
        if part is not module and part not in called and any(getattr(part, kind, None) for kind in (*FORWARD_HOOKS, *_STATE_HOOKS)):
            raise NotReplaceable(f"the hooks of its {name!r} would not be called")


def _original(ours: nn.Module) -> nn.Module:
    """The module that ours replaced, with the state, mode, hooks and settings of ours."""
    original = vars(ours)["_vqkit_original"]
    state = ours.state_dict(keep_vars=True)
    # The state may be empty where nothing is learned.
    original.to(next(chain(ours.parameters(), ours.buffers())).device)
    # Running means are kept in float32 here; in the original they follow ``.to(dtype)``.
    dtype = next((part._dtype_marker.dtype for part in ours.modules() if isinstance(part, Quantizer)), None)
    for key, target in original.state_dict(keep_vars=True).items():
        holder, _, name = key.rpartition(".")
        if isinstance(state[key], nn.Parameter):
            original.get_submodule(holder)._parameters[name] = state[key]
            continue
        value = state[key].detach()
        value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        if isinstance(target, nn.Parameter):
            target.data = value
        else:
            original.get_submodule(holder)._buffers[name] = value
    original.train(ours.training)
    for name in (*FORWARD_HOOKS, "_is_full_backward_hook"):
        setattr(original, name, getattr(ours, name))
    for name in vars(original).keys() & vars(ours).keys():
        if not name.startswith("_") and name != "training" and isinstance(vars(ours)[name], (bool, int, float, str)):
            setattr(original, name, vars(ours)[name])
    return original


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
