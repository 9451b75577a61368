"""All of the past, or the last tokens of it (Longformer, arXiv:2004.05150)."""

from __future__ import annotations

from typing import Annotated

from flagformer.attention.window import SlidingWindowSlot
from flagformer.flags import Flag, component


@component("window", kind="a")
class FullContext(SlidingWindowSlot):
    """Every earlier token is seen."""

    def __init__(self) -> None:
        super().__init__()


@component("window", select="attn_max_attend_past", paper="arXiv:2004.05150, section 3.1", kind="a")
class SlidingWindow(SlidingWindowSlot):
    """A sliding window: a query of self-attention sees itself and so many tokens before it.

    It also limits a prefix, a decode state and `window`. Departure: the paper's encoder looks equally far
    ahead; here only the past is masked, as in x-transformers.
    """

    def __init__(
        self,
        *,
        back: Annotated[
            int | None,
            Flag("attn_max_attend_past", "tokens before a query that self-attention sees", ge=1),
        ],
    ) -> None:
        assert back is not None
        super().__init__(back + 1)
