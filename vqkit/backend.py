"""Which backend computes: the automatic choice, explicit requests, and the reasons why one cannot serve."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping

NAMES = ("triton", "cuda", "native", "reference")

_in_force: list[str] = []


class BackendError(RuntimeError):
    """An explicitly requested backend cannot compute what it was asked to; the message says why."""


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise BackendError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Every operator called inside computes with backend ``name`` or raises BackendError; it never falls back.

    name: "triton", "cuda", "native" or "reference". An operator's own ``backend=`` argument comes first, then the innermost
    ``use_backend``, then the environment variable ``VQKIT_BACKEND``, then the automatic choice. The setting is process-wide.
    """
    _in_force.append(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _in_force.pop()


def requested(argument: str | None = None) -> str | None:
    """The backend that is explicitly asked for at this moment, or None when the choice is automatic."""
    if argument:
        return _checked(argument, "backend")
    if _in_force:
        return _in_force[-1]
    if environment := os.environ.get("VQKIT_BACKEND"):
        return _checked(environment, "VQKIT_BACKEND")
    return None


def choose(
    operator: str,
    refusals: Mapping[str, Callable[[], str | None]],
    argument: str | None = None,
    on_request: Collection[str] = (),
) -> str:
    """The backend that computes one call of ``operator``.

    refusals: for each backend that implements the operator, best first, a function that says why it cannot serve this call,
    or None when it can. on_request: backends that the automatic choice passes over. An explicit request that is refused
    raises BackendError with the reason; only the automatic choice moves on to the next backend.
    """
    name = requested(argument)
    if name is not None:
        if name not in refusals:
            raise BackendError(f"{operator}: there is no {name} implementation; there are {', '.join(refusals)}")
        if reason := refusals[name]():
            raise BackendError(f"{operator}: backend {name!r} was requested but cannot run: {reason}")
        return name
    reasons = []
    for candidate, refusal in refusals.items():
        if candidate in on_request:
            continue
        if (reason := refusal()) is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise BackendError(f"{operator}: no backend can compute this; {'; '.join(reasons)}")
