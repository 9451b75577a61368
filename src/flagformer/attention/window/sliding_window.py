"""Full context or a sliding window (Longformer, arXiv:2004.05150)."""

from __future__ import annotations

from typing import Annotated

from flagformer.attention.window import SlidingWindowSlot
from flagformer.flags import Flag, component


@component("window", kind="a")
class FullContext(SlidingWindowSlot):
    """Attention to all earlier tokens."""

    def __init__(self) -> None:
        super().__init__()


@component("window", select="attn_max_attend_past", paper="arXiv:2004.05150, section 3.1", kind="a")
class SlidingWindow(SlidingWindowSlot):
    """A query of self-attention attends to itself and to at most `back` tokens before it.

    The limit also applies to a prefix, a decode state and `window`. Departure: the paper's encoder limits
    later tokens too; here only earlier ones are masked, as in x-transformers.
    """

    def __init__(
        self,
        *,
        back: Annotated[
            int | None,
            Flag("attn_max_attend_past", "number of tokens before a query to which it attends", ge=1),
        ],
    ) -> None:
        assert back is not None
        super().__init__(back + 1)
