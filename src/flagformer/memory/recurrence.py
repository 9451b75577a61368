"""Segment-level recurrence (Transformer-XL, arXiv:1901.02860), also from layers above (arXiv:2012.15688)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, Requirement, component
from flagformer.flow import Layout
from flagformer.flow.recurrent_state import RecurrentState, read_memories
from flagformer.memory import Recurrence

TOKENS = Requirement(
    "num_memory_tokens", None, "memory tokens stand in front of each segment, between it and what came before"
)


@component("recurrence")
class NoRecurrence(Recurrence):
    """Every forward begins anew."""

    def __init__(self, dim: int, kinds: Sequence[str]) -> None:
        pass

    def read(self, mems: Any, masks: Any, batch: int, leaves: bool) -> None:
        if mems is not None or leaves:
            name = "mems" if mems is not None else "return_mems"
            raise ValueError(f"`{name}` needs a model with memories: build it with `max_mem_len`")

    def lowered(self, held: RecurrentState | None) -> RecurrentState | None:
        return held

    def write(
        self, held: RecurrentState | None, streams: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        raise AssertionError("`read` refuses whoever asks for memories")


@component("recurrence", select="max_mem_len", paper="arXiv:1901.02860, section 3.2", requires=[TOKENS])
class SegmentRecurrence(Recurrence):
    """Self-attention also reads what it read of the last M tokens before this segment.

    What a step read is remembered before its norm, and joins behind the same norm as keys and values only.
    Under `shift_tokens` every sublayer's input is remembered. Departure: the paper's shifted recurrence
    (2012.15688, section 3.3) ends with the last layer reading its own output; here, as in x-transformers,
    the last layers read what the first ones read.
    """

    def __init__(
        self,
        dim: int,
        kinds: Sequence[str],
        *,
        most: Annotated[
            int, Flag("max_mem_len", "tokens M of earlier segments that `return_mems` keeps", ge=0)
        ],
        shift: Annotated[
            int,
            Flag("shift_mem_down", "layers read the memories of so many layers above (2012.15688)", ge=0),
        ] = 0,
    ) -> None:
        own = [place for place, kind in enumerate(kinds) if kind == "a"]
        findings = []
        if not own:
            text = (
                "`max_mem_len` needs self-attention, and there is none under `only_cross` or `custom_layers`"
            )
            findings.append(Finding("max_mem_len", text + "; leave it out"))
        elif shift >= len(own):
            text = f"`shift_mem_down` must be below the {len(own)} self-attention steps of these layers"
            findings.append(Finding("shift_mem_down", f"{text} (`depth`), but is {shift}"))
        if findings:
            raise FlagError(findings)
        self.dim, self.count, self.most = dim, len(kinds), most
        # which memory each step reads
        self.reads = list(range(len(kinds)))
        for place, source in zip(own, own[shift:] + own[:shift]):
            self.reads[place] = source

    def read(self, mems: Any, masks: Any, batch: int, leaves: bool) -> RecurrentState | None:
        return None if mems is None else read_memories(mems, masks, self.count, batch, self.dim)

    def lowered(self, held: RecurrentState | None) -> RecurrentState | None:
        return (
            None
            if held is None
            else replace(held, hiddens=tuple(held.hiddens[place] for place in self.reads))
        )

    def write(
        self, held: RecurrentState | None, streams: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        return RecurrentState.updated([streams[step] for step in sorted(streams)], layout, held, self.most)
