"""Running statistics that stay in float32 whatever the model is cast to."""

from torch import Tensor, nn


class Float32Statistics(nn.Module):
    """A module whose floating point buffers keep their dtype under ``.to(dtype)``, ``.half()`` and loading by assignment.

    A running mean in bfloat16 stops moving once its steps are below 1/256 of it.
    """

    def _statistics(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()}

    def _apply(self, fn, recurse=True):
        kept = self._statistics()
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        kept = self._statistics()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # assign=True puts the tensors of the state in the place of the buffers.
        for name, buffer in kept.items():
            self._buffers[name] = self._buffers[name].to(buffer.dtype)
