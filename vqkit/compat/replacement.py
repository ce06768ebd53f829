"""Which foreign class is replaced by what: the register that ``accelerate`` reads and the adapters fill."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Build = Callable[[nn.Module], nn.Module]

# By class path, "package.module.Class", or by "Class" alone for code that people copy into their own repositories.
_REPLACEMENTS: dict[str, list[Build]] = {}

# What a hook that a module was given is kept in. Handles hold the dicts themselves, so that these can move to another module.
FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class NotReplaceable(Exception):
    """Why a module is left as it is; ``accelerate`` puts the text into its report."""


def replaces(*paths: str):
    """Register a function (foreign module) -> our module, with its weights, buffers and mode; it raises ``NotReplaceable``.

    Several functions may claim the same bare name: the first that does not raise is the one.
    """

    def register(build: Build) -> Build:
        for path in paths:
            _REPLACEMENTS.setdefault(path, []).append(build)
        return build

    return register


def registered(cls: type) -> bool:
    """Whether exactly this class is in the register, by its path or its bare name."""
    return bool(_builders(cls))


def find_replacement(module: nn.Module) -> Build | None:
    """What the register has for exactly this module's class, its full path before its bare name."""
    builders = _builders(type(module))
    return (lambda foreign: _first(builders, foreign)) if builders else None


def _builders(cls: type) -> list[Build]:
    if cls.__module__.partition(".")[0] == "vqkit":
        return []
    return _REPLACEMENTS.get(f"{cls.__module__}.{cls.__qualname__}") or _REPLACEMENTS.get(cls.__qualname__) or []


def _first(builders: list[Build], module: nn.Module) -> nn.Module:
    reasons = []
    for build in builders:
        try:
            return build(module)
        except NotReplaceable as reason:
            reasons.append(str(reason))
    raise NotReplaceable("; ".join(dict.fromkeys(reasons)))


def attributes(module: nn.Module, *names: str) -> list[Any]:
    """The values of these attributes; ``NotReplaceable`` for one that is not there."""
    for name in names:
        if not hasattr(module, name):
            raise NotReplaceable(f"it has no attribute {name!r}, which the class of this name has")
    return [getattr(module, name) for name in names]


def plain_embedding(module: nn.Module, name: str = "embedding") -> nn.Embedding:
    """The embedding that holds the codes, which is read without being called: one with no options or hooks of its own."""
    (embedding,) = attributes(module, name)
    if type(embedding) is not nn.Embedding:
        raise NotReplaceable(f"its {name!r} is a {type(embedding).__name__}, not an nn.Embedding")
    for option in ("max_norm", "padding_idx", "scale_grad_by_freq", "sparse"):
        if getattr(embedding, option) not in (None, False):
            raise NotReplaceable(f"its {name!r} has {option}={getattr(embedding, option)}")
    return embedding


def take_state(module: nn.Module, ours: nn.Module) -> nn.Module:
    """``ours`` on the device, with the dtype, the state and the mode of ``module``; ``NotReplaceable`` where the states do not fit."""
    state = module.state_dict()
    tensor = next(value for value in state.values() if value.is_floating_point())
    if tensor.is_meta:
        raise NotReplaceable("it is on the meta device: load its weights first")
    ours.to(tensor.device, tensor.dtype)
    try:
        ours.load_state_dict(state)
    except RuntimeError as error:
        raise NotReplaceable(" ".join(str(error).split())) from error
    return ours.train(module.training)


def _forward(module: nn.Module, x: Tensor) -> Any:
    return type(module).forward(module, x)


def checked(
    module: nn.Module,
    ours: nn.Module,
    *shape: int,
    codes: tuple[str, ...],
    run: Callable[[nn.Module, Tensor], Any] = _forward,
    learns: bool = True,
) -> nn.Module:
    """``ours``, if it behaves as ``module`` on random input of this shape; else ``NotReplaceable``.

    Copies of both, with random codes, run in float32 on the CPU, in training and in eval mode; compared are what they return, the
    gradients to the input and to the parameters, and, if ``learns``, the state afterwards. A class that only has the name and the
    attributes of another one, a changed copy, is found out.

    codes: the names of the codes in the state dict.  run: what to call.
    """
    for training in (True, False):
        theirs, own = (_trace(part, shape, codes, run, training, learns) for part in (module, ours))
        for name in theirs | own:
            if not _close(theirs.get(name), own.get(name)):
                mode = "training" if training else "eval"
                raise NotReplaceable(f"on a trial in {mode} mode its {name} is not that of the class that it has the name of")
    return ours


def _trace(module: nn.Module, shape: tuple, codes: tuple[str, ...], run: Callable, training: bool, learns: bool) -> dict[str, Any]:
    """What a copy of the module returns and computes, by name."""
    module = copy.deepcopy(module).to("cpu", torch.float32).train(training)
    for part in module.modules():
        for name in FORWARD_HOOKS:
            getattr(part, name).clear()
    generator = torch.Generator().manual_seed(0)
    state = module.state_dict()
    for name in codes:
        state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(1))
    module.load_state_dict(state)
    x = torch.randn(shape, generator=generator).requires_grad_()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(0)
        # A function of the input, so that code that writes in place may.
        results = pytree.tree_leaves(run(module, x * 1))
        total = x.sum() * 0
        for value in results:
            if isinstance(value, Tensor) and value.requires_grad:
                total = total + (value * torch.randn(value.shape, generator=generator)).sum()
        learned = {name: value for name, value in module.state_dict(keep_vars=True).items() if value.requires_grad}
        gradients = torch.autograd.grad(total, [x, *learned.values()], allow_unused=True)
    found = {f"result {place}": value for place, value in enumerate(results)}
    found |= {f"gradient to {name}": value for name, value in zip(["the input", *learned], gradients) if value is not None}
    return found | ({f"state {name!r}": value for name, value in module.state_dict().items()} if learns else {})


def _close(a: Any, b: Any) -> bool:
    """Whether two values agree up to rounding; None is a gradient or a result of zero."""
    a, b = (_dense(value) for value in (a, b))
    if a is None or b is None:
        other = b if a is None else a
        return other is None or not other.any()
    a, b = a.reshape(-1) if a.numel() == b.numel() == 1 else a, b.reshape(-1) if a.numel() == b.numel() == 1 else b
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def _dense(value: Any) -> Tensor | None:
    if value is None or isinstance(value, str):
        return None
    value = torch.as_tensor(value).detach()
    return (value.to_dense() if value.is_sparse else value).double()
