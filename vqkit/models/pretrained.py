"""What every model can do: be built from a configuration of JSON values, be saved in a folder, and be loaded from it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from typing import Any, ClassVar, Self

import torch
from torch import nn

from vqkit.models import checkpoint


class PretrainedModel(nn.Module):
    """A model with a name and a configuration.

    A subclass sets `name` and `Config`, a frozen dataclass of JSON values. `config` is that configuration as JSON values, enough for
    `from_pretrained` to build the model again.
    """

    name: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        # what was given and what is read back from JSON are then the same
        self.config = json.loads(json.dumps(config))

    @classmethod
    def create(cls, **config) -> Self:
        """A model with fresh weights from the fields of `Config`. TypeError for a field that it does not have."""
        return cls(cls.parse(config))

    @classmethod
    def parse(cls, config: dict[str, Any]):
        """`Config` from a dict of its fields."""
        known = [field.name for field in dataclasses.fields(cls.Config)]
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"{key}: {cls.name} has no such setting, expected one of {', '.join(known)}{hint}")
        return cls.Config(**config)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `model.safetensors`, which is all that loading needs, and `config.json`, the copy of its configuration to read.

        Each replaces an earlier one in one step.
        """
        checkpoint.write(folder, self.name, self.config, self)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Self:
        """As `vqkit.models.from_pretrained`, for a folder known to hold this model. Raises ValueError for another."""
        name, config = checkpoint.read_config(folder)
        if name != cls.name:
            raise ValueError(f"folder: {os.fspath(folder)} holds a {name}, expected a {cls.name}")
        return cls.load(folder, config)

    @classmethod
    def load(cls, folder: str | os.PathLike, config: dict[str, Any]) -> Self:
        """The model of a folder whose configuration was read already."""
        try:
            # the weights that are drawn here are thrown away: leave the caller's random numbers alone
            with torch.random.fork_rng(devices=[]):
                model = cls.from_config(config)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"folder: the configuration in {os.fspath(folder)} is not that of a {cls.name}: {type(error).__name__}: {error}"
            ) from error
        checkpoint.read_weights(folder, model)
        return model.eval()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A model of this shape with fresh weights, from the `config` of another."""
        return cls.create(**config)
