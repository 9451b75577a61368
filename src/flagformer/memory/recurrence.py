"""Segment-level recurrence (Transformer-XL, arXiv:1901.02860), optionally shifted (arXiv:2012.15688)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Layout
from flagformer.flow.recurrent_state import RecurrentState, read_memories
from flagformer.memory import Recurrence

BETWEEN = "memory tokens would come between a segment and the tokens of earlier ones"


@component("recurrence")
class NoRecurrence(Recurrence):
    """No memory between forwards."""

    most = 0

    def __init__(self, dim: int, kinds: Sequence[str]) -> None:
        pass

    def read(self, mems: Any, masks: Any, batch: int, return_mems: bool) -> None:
        if mems is not None or return_mems:
            name = "mems" if mems is not None else "return_mems"
            raise ValueError(f"`{name}` needs a model with memories: build it with `max_mem_len`")

    def shifted(self, mems: RecurrentState | None) -> RecurrentState | None:
        return mems

    def write(
        self, mems: RecurrentState | None, hiddens: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        raise AssertionError("`read` refuses `return_mems`")


@component(
    "recurrence",
    select="max_mem_len",
    paper="arXiv:1901.02860, section 3.2",
    lacks={"inserted_tokens": BETWEEN},
)
class SegmentRecurrence(Recurrence):
    """Self-attention also attends to the last M tokens before this segment.

    The input of each step is stored before its norm; the next segment norms it and uses it for keys and
    values only. With `shift_tokens` the input of every sublayer is stored. Departure: in the paper's shifted
    recurrence (2012.15688, section 3.3) the last layer reads its own output; here, as in x-transformers, the
    last layers read the memories of the first ones.
    """

    def __init__(
        self,
        dim: int,
        kinds: Sequence[str],
        *,
        most: Annotated[
            int, Flag("max_mem_len", "tokens M of earlier segments that `return_mems` returns", ge=0)
        ],
        shift: Annotated[
            int,
            Flag(
                "shift_mem_down", "a layer reads the memories of the layer this far above (2012.15688)", ge=0
            ),
        ] = 0,
    ) -> None:
        attention_steps = [step for step, kind in enumerate(kinds) if kind == "a"]
        findings = []
        if not attention_steps:
            text = (
                "`max_mem_len` needs self-attention, and there is none under `only_cross` or `custom_layers`"
            )
            findings.append(Finding("max_mem_len", text + "; leave it out"))
        elif shift >= len(attention_steps):
            count = len(attention_steps)
            text = f"`shift_mem_down` must be below the {count} self-attention steps of these layers"
            findings.append(Finding("shift_mem_down", f"{text} (`depth`), but is {shift}"))
        if findings:
            raise FlagError(findings)
        self.dim, self.count, self.most = dim, len(kinds), most
        # the index of the memory that each step reads
        self.sources = list(range(len(kinds)))
        for step, source in zip(attention_steps, attention_steps[shift:] + attention_steps[:shift]):
            self.sources[step] = source

    def read(self, mems: Any, masks: Any, batch: int, return_mems: bool) -> RecurrentState | None:
        return None if mems is None else read_memories(mems, masks, self.count, batch, self.dim)

    def shifted(self, mems: RecurrentState | None) -> RecurrentState | None:
        if mems is None:
            return None
        return replace(mems, hiddens=tuple(mems.hiddens[source] for source in self.sources))

    def write(
        self, mems: RecurrentState | None, hiddens: Mapping[int, Tensor], layout: Layout
    ) -> RecurrentState:
        return RecurrentState.updated([hiddens[step] for step in sorted(hiddens)], layout, mems, self.most)
