"""The result of a graft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHOWN = 3  # flags in a line


@dataclass(frozen=True)
class Graft:
    """The result of a graft, as the attribute `graft` of the model.

    Tensors have plain names: `layers.0.attn.q.weight` is a part of a projection.

    Attributes:
        flags: the flags that were set.
        kept: tensors that are those of the directory.
        grown: tensors of which a part is that of the directory -> how the rest was filled.
        initialised: new tensors.
        dropped: tensors of the directory without a place in the model.
        changed: flag -> why the model computes another function from the start; empty if it computes that of
            the directory, up to rounding.
    """

    flags: Mapping[str, Any]
    kept: tuple[str, ...]
    grown: Mapping[str, str]
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: Mapping[str, str]

    @property
    def keeps_function(self) -> bool:
        """Whether the model computes the function of the directory, up to rounding, until it is trained."""
        return not self.changed

    def line(self) -> str:
        """The result in one line."""
        counts = (
            f"{len(getattr(self, name)):,} {name}" for name in ("kept", "grown", "initialised", "dropped")
        )
        if not self.flags:
            return f"the model of the directory, {len(self.kept):,} tensors"
        text = f"grafted {', '.join(f'`{name}`' for name in self.flags)}: tensors {', '.join(counts)}"
        if self.keeps_function:
            return f"{text}; the function is kept"
        more = len(self.changed) - SHOWN
        why = [*list(self.changed.values())[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        return f"{text}; the function changes: {'; '.join(why)}"

    def as_plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**asdict(self), "keeps_function": self.keeps_function, "line": self.line()}
