"""The error of models that have no place in a table of a family."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 8  # reasons in a message


class ConversionError(ValueError):
    """A directory or a model that cannot be converted.

    Attributes:
        reasons: one sentence for each config field, flag or tensor that has no place.
        what: the directory.
    """

    def __init__(self, reasons: Iterable[str], what: str = "") -> None:
        self.reasons, self.what = tuple(dict.fromkeys(reasons)), what
        more = len(self.reasons) - SHOWN
        text = "; ".join([*self.reasons[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
        super().__init__(f"{what}: {text}" if what else text)

    def __reduce__(self) -> tuple[type[ConversionError], tuple[tuple[str, ...], str]]:
        return type(self), (self.reasons, self.what)
