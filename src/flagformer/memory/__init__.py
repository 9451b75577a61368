"""What one segment of a text leaves for the forward of the next: tokens it read, and slots it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flagformer.flow import Layout, RecurrentState


class Recurrence(ABC):
    """Contract of the slot `recurrence`, built as `(dim, kinds)`: the kind of each step that remembers."""

    @abstractmethod
    def read(self, mems: Any, masks: Any, batch: int, leaves: bool) -> RecurrentState | None:
        """What a user hands over, checked; None where it is nothing. `leaves`: new ones are asked for."""

    @abstractmethod
    def lowered(self, held: RecurrentState | None) -> RecurrentState | None:
        """The same as the steps read them: each its own, or those of a step above."""

    @abstractmethod
    def write(
        self, held: RecurrentState | None, streams: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        """What is left: of what was held, and of what the steps read of a segment with this layout."""


class SlotMemory(nn.Module, ABC):
    """Contract of the slot `slots`, built as `(dim)`: vectors that cross-attention reads and segments write.

    Attributes:
        count: M, how many; 0: there are none.
    """

    count: int

    @abstractmethod
    def read(self, mems: Any, batch: int) -> tuple[Tensor | None, Any]:
        """What a user hands over as `mems`, or None: slots [B, M, D], and what else there is in it."""

    @abstractmethod
    def seen(self, slots: Tensor) -> Tensor:
        """[B, M, D], as cross-attention reads them: of the size of tokens."""

    @abstractmethod
    def write(self, slots: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """What a segment makes of them, [B, M, D].

        Args:
            tokens: [B, T, D], the segment behind the last layer.
            padding: [1 or B, T] bool, True for real tokens; a row without any leaves its slots as they are.
        """


class Writer(nn.Module, ABC):
    """What a segment makes of slots, once; and what they are before the first one."""

    def start(self) -> Tensor:
        """[M, D]."""
        found: Tensor = self(None, None, None)  # FSDP2 gathers parameters in `forward` alone
        return found

    @abstractmethod
    def seen(self, slots: Tensor) -> Tensor:
        """[B, M, D], of the size of tokens."""

    @abstractmethod
    def forward(self, slots: Tensor | None, tokens: Tensor | None, real: Tensor | None) -> Tensor:
        """slots [B, M, D], tokens [B, T, D], real [1 or B, T] bool or None for all -> [B, M, D]; without
        slots, what they are at the start, [M, D]."""
