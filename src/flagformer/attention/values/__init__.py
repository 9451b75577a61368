"""Settings of the values: width, shared with keys, rotated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Values:
    """Settings of the values of one attention.

    Attributes:
        width: width V of a value head.
        shared: whether the keys, before their norm and rotation, are the values.
        rotated: whether values are rotated by position, as keys are.
    """

    width: int
    shared: bool = False
    rotated: bool = False


class ValueRule(ABC):
    """Contract of the slot `values`, built as `(dims, rotation)`: a function from settings to settings.

    `rotation` is None if it could not be built, which is reported separately.
    """

    @abstractmethod
    def __call__(self, values: Values) -> Values:
        """Return the settings with this rule applied."""
