"""Wrappers that `flagformer.load` does not restore, and how to save them."""

from __future__ import annotations

from pathlib import Path


class Unsaved:
    """A wrapper whose `save` raises an error with the calls to use.

    Attributes:
        saving: the calls that save and restore such a wrapper.
    """

    saving: str

    def save(self, directory: str | Path) -> None:
        """Raise ValueError, with the calls that save and load the parts of this wrapper."""
        raise ValueError(f"a {type(self).__name__} is saved in parts: {self.saving}; no file was written")
