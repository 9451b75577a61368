"""Attention within chunks of a row (Llama 4; local attention of arXiv:1801.10198)."""

from __future__ import annotations

from typing import Annotated

from flagformer.attention.window import SlidingWindowSlot
from flagformer.flags import Flag, component
from flagformer.flow import Chunks


@component("window", select="attn_chunk_size", paper="arXiv:1801.10198, section 4.2.4", kind="a")
class ChunkedWindow(SlidingWindowSlot):
    """Rows are divided into chunks; a query of self-attention attends to tokens of its own chunk.

    Chunks begin at the first token of a sequence and are counted by position, so that left padding, packing,
    XL memories and decoding do not shift them. Memory tokens are always attended to. `pos` has no effect.
    """

    def __init__(
        self,
        *,
        size: Annotated[
            int | None,
            Flag(
                "attn_chunk_size",
                "number of tokens of a chunk, within which a query attends",
                ge=1,
                example=3,
            ),
        ],
    ) -> None:
        assert size is not None
        super().__init__(size, (Chunks(size),))
