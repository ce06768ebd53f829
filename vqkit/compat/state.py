"""State dicts under another library's names."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


def same(tensor: Tensor) -> Tensor:
    return tensor


def with_head(tensor: Tensor) -> Tensor:
    """(K, ...) as (1, K, ...): a codebook that counts its heads."""
    return tensor[None]


def without_head(tensor: Tensor) -> Tensor:
    return tensor[0]


@dataclass(frozen=True)
class StateKey:
    """One entry: the name here, the name there, and what turns one tensor into the other.

    theirs: None for an entry that they do not have: it is left out, and stays as it is when a state is loaded.
    """

    ours: str
    theirs: str | None
    to_theirs: Callable[[Tensor], Tensor] = same
    to_ours: Callable[[Tensor], Tensor] = same


class ForeignState(nn.Module):
    """A module whose ``state_dict`` has the names and shapes of another library's, and which loads such a one."""

    def state_keys(self) -> list[StateKey]:
        """The entries that differ; all others keep their names."""
        return []

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for key in self.state_keys():
            if prefix + key.ours in destination:
                value = destination.pop(prefix + key.ours)
                if key.theirs is not None:
                    destination[prefix + key.theirs] = key.to_theirs(value)
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in self.state_keys():
            if key.theirs is None:
                state_dict[prefix + key.ours] = self.get_buffer(key.ours)
            elif prefix + key.theirs in state_dict:
                state_dict[prefix + key.ours] = key.to_ours(state_dict.pop(prefix + key.theirs))
        super()._load_from_state_dict(state_dict, prefix, *args)
