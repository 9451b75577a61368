"""Memory slots (Memformer, arXiv:2010.06891), or none."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import RecurrentState
from flagformer.memory import SlotMemory, Writer
from flagformer.memory.write_bmn import BMNWriter
from flagformer.memory.write_gru import GRUWriter
from flagformer.ops.full_precision import no_autocast

BMN_TEMPERATURE = 0.25  # the default


@component("slots")
class NoSlots(SlotMemory):
    """No memory slots: cross-attention reads the caller's context."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.count = 0

    def read(self, mems: Any, batch: int) -> tuple[None, Any]:
        if isinstance(mems, RecurrentState) and mems.slots is not None:
            raise ValueError("`mems` holds slots, but this model has none: build it with `num_memory_slots`")
        return None, mems

    def as_context(self, slots: Tensor) -> Tensor:
        return slots

    def write(self, slots: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        return slots


@component("slots", select="num_memory_slots", paper="arXiv:2010.06891, section 3", kind="c")
class MemorySlots(SlotMemory):
    """M vectors per row, which cross-attention reads in place of a context and each segment updates.

    Departure: the paper's slots belong to an encoder; here any layers with cross-attention read them, also
    those of a decoder, which thus reads earlier segments.
    """

    def __init__(
        self,
        dim: int,
        *,
        count: Annotated[int, Flag("num_memory_slots", "slots M that segments write (2010.06891)", ge=0)],
        update: Annotated[
            str,
            Flag("memory_update", "a recurrent unit, or biased memory normalisation", choices=("gru", "bmn")),
        ] = "gru",
        rounds: Annotated[int, Flag("num_mem_updates", "slot updates per segment", ge=1, lt=1000)] = 1,
        heads: Annotated[int, Flag("mem_update_attn_heads", "attention heads of slots", ge=1)] = 8,
        temperature: Annotated[
            float | None,
            Flag(
                "memory_temperature",
                "of the softmax of `memory_update=bmn`; None: 0.25",
                ge=1e-3,
                example_with={"memory_update": "bmn"},
            ),
        ] = None,
    ) -> None:
        super().__init__()
        findings = []
        if dim % heads:
            text = f"`mem_update_attn_heads` must divide `dim` = {dim}, but is {heads}"
            findings.append(Finding("mem_update_attn_heads", text))
        if temperature is not None and update != "bmn":
            text = (
                f"`memory_temperature` needs `memory_update='bmn'` (it is {update!r}): it scales its softmax"
            )
            findings.append(Finding("memory_temperature", f"{text}; leave it out"))
        if findings:
            raise FlagError(findings)
        self.count, self.dim, self.rounds = count, dim, rounds
        self.writer: Writer = (
            GRUWriter(dim, count, heads)
            if update == "gru"
            else BMNWriter(dim, count, heads, BMN_TEMPERATURE if temperature is None else temperature)
        )

    def read(self, mems: Any, batch: int) -> tuple[Tensor, Any]:
        if mems is None:
            return self.writer.start().expand(batch, -1, -1), None
        tokens = mems if isinstance(mems, RecurrentState) and mems.hiddens else None
        slots = mems.slots if isinstance(mems, RecurrentState) else mems
        shape = [batch, self.count, self.dim]
        if not isinstance(slots, Tensor) or list(slots.shape) != shape or not slots.is_floating_point():
            found = list(slots.shape) if isinstance(slots, Tensor) else type(mems).__name__
            raise ValueError(
                f"`mems` must be a result of `return_mems`, with slots of shape {shape} (`num_memory_slots` "
                f"for each of {batch} rows), but is {found}"
            )
        return slots, tokens

    def as_context(self, slots: Tensor) -> Tensor:
        return self.writer.as_context(slots)

    def write(self, slots: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        # full precision, as rounding errors would accumulate over segments
        with no_autocast(slots.device):
            new, tokens = slots, tokens.to(slots.dtype)
            for _ in range(self.rounds):
                new = self.writer(new, tokens, valid)
        if valid is None:
            return new
        return torch.where(valid.any(dim=1)[:, None, None], new, slots)
