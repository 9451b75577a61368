"""Sliding windows of self-attention sublayers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SlidingWindowSlot:
    """Contract of the slot `window`.

    Attributes:
        width: number of tokens that a query attends to, itself and the last ones before it; later tokens of
            bidirectional attention are not counted. None: all.
    """

    width: int | None = None
