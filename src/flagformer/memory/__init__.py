"""Memory between the segments of a text: hidden states of earlier tokens, and memory slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flagformer.flow import Layout, RecurrentState


class Recurrence(ABC):
    """Contract of the slot `recurrence`, built as `(dim, kinds)`: the kind of each recurrent step.

    Attributes:
        most: maximum number of tokens of earlier segments in a memory; 0: there is no memory.
    """

    most: int

    @abstractmethod
    def read(self, mems: Any, masks: Any, batch: int, return_mems: bool) -> RecurrentState | None:
        """Check the user's `mems` and return them as a state; None for none."""

    @abstractmethod
    def shifted(self, mems: RecurrentState | None) -> RecurrentState | None:
        """Return the memories in the order in which steps read them, shifted by `shift_mem_down`."""

    @abstractmethod
    def write(
        self, mems: RecurrentState | None, hiddens: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        """Return the next memories, from the previous ones and the inputs of the steps in this segment."""


class SlotMemory(nn.Module, ABC):
    """Contract of the slot `slots`, built as `(dim)`: vectors that cross-attention reads and segments write.

    Attributes:
        count: number of slots M; 0: there are none.
    """

    count: int

    @abstractmethod
    def read(self, mems: Any, batch: int) -> tuple[Tensor | None, Any]:
        """Split the user's `mems` (or None) into slots [B, M, D] and the rest."""

    @abstractmethod
    def as_context(self, slots: Tensor) -> Tensor:
        """[B, M, D], scaled to the norm of tokens for cross-attention."""

    @abstractmethod
    def write(self, slots: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """Return the slots [B, M, D] after a segment.

        Args:
            tokens: [B, T, D], the output of the last layer for the segment.
            valid: [1 or B, T] bool, True for tokens, False for padding; a row without valid tokens keeps its
                slots. None: all are valid.
        """


class Writer(nn.Module, ABC):
    """One update of slots by a segment, and the initial slots."""

    def start(self) -> Tensor:
        """[M, D], the initial slots."""
        initial: Tensor = self(None, None, None)  # FSDP2 gathers parameters only in `forward`
        return initial

    @abstractmethod
    def as_context(self, slots: Tensor) -> Tensor:
        """[B, M, D], scaled to the norm of tokens."""

    @abstractmethod
    def forward(self, slots: Tensor | None, tokens: Tensor | None, valid: Tensor | None) -> Tensor:
        """slots [B, M, D], tokens [B, T, D], valid [1 or B, T] bool or None for all -> [B, M, D]; without
        slots the initial ones, [M, D]."""
