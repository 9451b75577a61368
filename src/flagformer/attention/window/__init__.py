"""How far back a query looks: what a self-attention sublayer decides for itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SlidingWindowSlot:
    """Contract of the slot `window`.

    Attributes:
        width: tokens that a query sees, itself and the last ones before it; later ones, where they may be
            seen at all, are not counted. None: all of them.
    """

    width: int | None = None
