"""Full context or a sliding window (Longformer, arXiv:2004.05150; ModernBERT, arXiv:2412.13663)."""

from __future__ import annotations

from typing import Annotated

from flagformer.attention.window import SlidingWindowSlot
from flagformer.flags import Flag, component
from flagformer.flow import Window


@component("window", kind="a")
class FullContext(SlidingWindowSlot):
    """Attention to all tokens that the mask allows."""

    def __init__(self) -> None:
        super().__init__()


@component("window", select="attn_max_attend_past", paper="arXiv:2004.05150, section 3.1", kind="a")
class SlidingWindow(SlidingWindowSlot):
    """A query of self-attention attends to itself and to a limited number of tokens before and after it.

    The limit of earlier tokens also applies to a prefix, a decode state and `window`. Later tokens, of a
    bidirectional model, have no limit by default, as in x-transformers; the paper's limits are equal.
    """

    def __init__(
        self,
        *,
        back: Annotated[
            int | None,
            Flag("attn_max_attend_past", "number of tokens before a query to which it attends", ge=1),
        ],
        ahead: Annotated[
            int | None,
            Flag(
                "attn_max_attend_ahead",
                "number of tokens after a query to which it attends; None: all",
                ge=0,
                example=1,
                example_with={"model": "encoder"},
            ),
        ] = None,
    ) -> None:
        assert back is not None
        super().__init__(back + 1, () if ahead is None else (Window(None, ahead),))
