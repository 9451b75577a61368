"""Models with a method `save`: those that `flagformer.load` restores, and those saved in parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from flagformer.storage.models import save_model


class Saved(nn.Module):
    """A model that its flags and weights restore."""

    @property
    @abstractmethod
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""

    @staticmethod
    @abstractmethod
    def from_flags(flags: Mapping[str, Any]) -> nn.Module:
        """The model of `flags`."""

    def save(self, directory: str | Path) -> None:
        """Write `model.safetensors` and `flags.json`, which `flagformer.load` reads."""
        save_model(self, self.flags, self.from_flags, Path(directory))


class Unsaved:
    """A wrapper whose `save` raises an error with the calls to use.

    Attributes:
        saving: the calls that save and restore such a wrapper.
    """

    saving: str

    def save(self, directory: str | Path) -> None:
        """Raise ValueError, with the calls that save and load the parts of this wrapper."""
        raise ValueError(f"a {type(self).__name__} is saved in parts: {self.saving}; no file was written")
