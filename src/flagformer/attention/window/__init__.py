"""Windows of self-attention sublayers."""

from __future__ import annotations

from dataclasses import dataclass

from flagformer.flow import MaskRule


@dataclass(frozen=True)
class SlidingWindowSlot:
    """Contract of the slot `window`.

    Attributes:
        width: the largest number of tokens that a query attends to, itself and the last ones before it; later
            tokens of bidirectional attention are not counted. A decode state is read within it. None: all.
        rules: further rules, joined by `and`; sublayers whose rules are equal share their masks.
    """

    width: int | None = None
    rules: tuple[MaskRule, ...] = ()
