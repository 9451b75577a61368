"""Wrappers that `flagformer.load` does not make, and what to save in their place."""

from __future__ import annotations

from pathlib import Path


class Unsaved:
    """A wrapper whose `save` says what to call.

    Attributes:
        saving: the calls that save such a wrapper and make it again.
    """

    saving: str

    def save(self, directory: str | Path) -> None:
        """Raises ValueError, with the calls that save and load what this wrapper holds."""
        raise ValueError(f"a {type(self).__name__} is saved in parts: {self.saving}; nothing was written")
