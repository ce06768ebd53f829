"""Parameters that a module writes itself, also where FSDP2 keeps them in shards."""

from types import EllipsisType

import torch
from torch import Tensor, nn


class WrittenParameters(nn.Module):
    """A module that writes its own parameters in a forward pass: a start from the data, the replacement of dead codes.

    FSDP2 (``torch.distributed.fsdp.fully_shard``) keeps a shard of each parameter and, for the time of a pass, puts a gathered copy
    under its name. What is written to the copy is gone with it, so ``write`` reaches the shard as well. All ranks write the same.
    """

    # The shards by name, while gathered copies stand in their places.
    _shards: dict[str, Tensor] | None = None

    def __setattr__(self, name, value):
        held = self.__dict__.get("_parameters", {}).get(name)
        if _is_shard(held):
            self.__dict__["_shards"] = (self._shards or {}) | {name: held}
        if _is_shard(value) and self._shards:
            self.__dict__["_shards"] = {key: shard for key, shard in self._shards.items() if key != name} or None
        super().__setattr__(name, value)

    @torch.no_grad()
    def write(self, name: str, values: Tensor, where: Tensor, index: int | EllipsisType = ...) -> None:
        """Set the parameter or buffer of this name, at ``index``, to these values where ``where``, bool, that broadcasts to them."""
        target = getattr(self, name)
        part = target[index]
        part.copy_(values.to(part.dtype).where(where, part))
        if self._shards and name in self._shards:
            # In the precision of the shard, which that of the copy may be below.
            shard = self._shards[name]
            whole, written = target.new_zeros(target.shape, dtype=shard.dtype), target.new_zeros(target.shape, dtype=torch.bool)
            whole[index] = values.to(shard.dtype)
            written[index] = where
            shard.to_local().copy_(_share(whole, shard).where(_share(written, shard), shard.to_local()))


def _is_shard(value: object) -> bool:
    return isinstance(value, nn.Parameter) and hasattr(value, "device_mesh")


def _share(whole: Tensor, shard: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, cut as ``shard`` is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, shard.device_mesh, shard.placements, src_data_rank=None).to_local()
