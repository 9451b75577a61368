"""Values: how wide they are, whose they are, and whether positions turn them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Values:
    """What holds of the values of one attention.

    Attributes:
        width: V, of one value head.
        shared: whether the keys, before their norm and rotation, stand for the values.
        turned: whether each value is turned by its own position, as its key is.
    """

    width: int
    shared: bool = False
    rotated: bool = False


class ValueRule(ABC):
    """Contract of the slot `values`, built as `(dims, rotation)`: says one thing about the values.

    `rotation` is None where it could not be built, which is a finding of its own already.
    """

    @abstractmethod
    def __call__(self, values: Values) -> Values:
        """What held before -> what holds now."""
