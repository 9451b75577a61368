"""Recurrence: what one segment of a text leaves for the forward of the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flagformer.flow import Layout, Memories


class Recurrence(ABC):
    """Contract of the slot `recurrence`, built as `(dim, kinds)`: the kind of each step that remembers."""

    @abstractmethod
    def read(self, mems: Any, masks: Any, batch: int, leaves: bool) -> Memories | None:
        """What a user hands over, checked; None where it is nothing. `leaves`: new ones are asked for."""

    @abstractmethod
    def lowered(self, held: Memories | None) -> Memories | None:
        """The same as the steps read them: each its own, or those of a step above."""

    @abstractmethod
    def write(self, held: Memories | None, streams: Mapping[int, Tensor], layout: Layout) -> Memories:
        """What is left: of what was held, and of what the steps read of a segment with this layout."""
