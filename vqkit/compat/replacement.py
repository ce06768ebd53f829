"""Which foreign class is replaced by what: the register that ``accelerate`` reads and the adapters fill."""

from collections.abc import Callable

from torch import nn

# By class path, "package.module.Class", or by "Class" alone for code that people copy into their own repositories.
_REPLACEMENTS: dict[str, Callable[[nn.Module], nn.Module]] = {}


class NotReplaceable(Exception):
    """Why a module is left as it is; ``accelerate`` puts the text into its report."""


def replaces(*paths: str):
    """Register a function (foreign module) -> our module, with its weights, buffers and mode; it raises ``NotReplaceable``."""

    def register(build: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
        for path in paths:
            _REPLACEMENTS[path] = build
        return build

    return register


def find_replacement(module: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
    """The function registered for exactly this module's class, its full path before its bare name."""
    cls = type(module)
    return _REPLACEMENTS.get(f"{cls.__module__}.{cls.__qualname__}") or _REPLACEMENTS.get(cls.__qualname__)
