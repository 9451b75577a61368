"""Recurrent state between segments: inputs of attention in earlier segments (arXiv:1901.02860)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.state_record import read_rows, take_rows


@dataclass(frozen=True)
class RecurrentState:
    """Hidden states of M earlier tokens of each row, directly before the next token.

    It can be iterated and indexed as a list of its hidden states.

    Attributes:
        hiddens: [B, M, D] for each recurrent execution step: the input of the step before its norm.
        layout: layout of the M tokens. Valid tokens are at the end of each row; invalid ones have position
            -1, and the next segment of a row without valid tokens begins at position 0.
        slots: [B, slots, D], memory slots (Memformer, arXiv:2010.06891); None: there are none.
    """

    hiddens: tuple[Tensor, ...]
    layout: Layout
    slots: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hiddens)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.hiddens)

    def __getitem__(self, index: int) -> Tensor:
        return self.hiddens[index]

    @property
    def length(self) -> int:
        """M."""
        return self.layout.length

    def detach(self, slots: bool = True) -> RecurrentState:
        """Return the state without gradient; `slots=False` keeps the gradient of the slots."""
        detached = self.slots.detach() if slots and self.slots is not None else self.slots
        return replace(self, hiddens=tuple(hidden.detach() for hidden in self.hiddens), slots=detached)

    @staticmethod
    def of_slots(slots: Tensor) -> RecurrentState:
        """A state of memory slots without hidden states."""
        return RecurrentState((), Layout.arange(0, slots.device), slots)

    def select(self, rows: Tensor | Sequence[int]) -> RecurrentState:
        """A state of some rows, which may repeat: row numbers, long [N] or a list."""
        held = [*self.hiddens, *([] if self.slots is None else [self.slots])]
        batch, device = len(held[0]), held[0].device
        index = read_rows(rows, batch, device)
        valid = self.layout.valid
        layout = replace(
            self.layout,
            positions=take_rows(self.layout.positions, index, batch),
            valid=None if valid is None else take_rows(valid, index, batch),
        )
        hiddens = tuple(hidden.index_select(0, index) for hidden in self.hiddens)
        return RecurrentState(hiddens, layout, None if self.slots is None else self.slots[index])

    def size_bytes(self) -> int:
        """Memory of the hidden states and slots in bytes."""
        return sum(one.nbytes for one in (*self.hiddens, self.slots) if one is not None)

    def masked_by(self, valid: Tensor) -> RecurrentState:
        """Return the state with only those tokens valid that are also True in `valid` [B, M]."""
        return replace(self, layout=self.layout.masked_by(valid))

    def shift_layout(self, layout: Layout) -> Layout:
        """Return the layout of a segment that follows these tokens: positions continue from theirs."""
        valid, positions = layout.valid, layout.positions
        if valid is None and self.layout.valid is not None:
            valid = torch.ones_like(self.layout.valid[:, :1]).expand(-1, layout.length)
        if layout.contiguous_positions:
            positions = positions + self.layout.positions[:, -1:] + 1
        contiguous = layout.contiguous_positions and self.layout.contiguous_positions
        return Layout(positions, valid, start=self.layout.end, contiguous_positions=contiguous)

    @staticmethod
    def updated(
        hiddens: Sequence[Tensor], layout: Layout, previous: RecurrentState | None, max_length: int
    ) -> RecurrentState:
        """Return the last `max_length` tokens of the previous state and of the segment after it.

        Padding at the end of the segment moves to the front of its row, so that valid tokens are contiguous.
        """
        total = layout if previous is None else previous.layout.concat(layout)
        last = slice(max(0, total.length - max_length), None)
        if previous is not None:
            pairs = zip(previous.hiddens, hiddens)
            hiddens = [torch.cat([old.to(new.dtype), new], dim=1) for old, new in pairs]
        start = total.end - min(max_length, total.length)
        contiguous = total.contiguous_positions
        if layout.valid is None:
            valid = None if total.valid is None else total.valid[:, last]
            # a slice would keep the memory of the whole segment
            copies = (hidden[:, last].clone() if total.length > max_length else hidden for hidden in hiddens)
            last_layout = Layout(
                total.positions[:, last], valid, start=start, contiguous_positions=contiguous
            )
            return RecurrentState(tuple(copies), last_layout)
        assert total.valid is not None
        rows = hiddens[0].shape[0]
        index = torch.arange(1, layout.length + 1, device=layout.valid.device)
        num_pads = layout.length - (index * layout.valid).amax(dim=1)  # [1 or B], padding at the end
        source = torch.arange(total.length, device=num_pads.device)[last] - num_pads[:, None]
        is_stored, source = (source >= 0).expand(rows, -1), source.clamp(min=0).expand(rows, -1)  # [B, M]
        positions = total.positions.expand(rows, -1).gather(1, source).masked_fill(~is_stored, -1)
        valid = total.valid.expand(rows, -1).gather(1, source) & is_stored
        shifted = tuple(
            hidden.gather(1, source[..., None].expand(-1, -1, hidden.shape[2])) for hidden in hiddens
        )
        return RecurrentState(shifted, Layout(positions, valid, start=start, contiguous_positions=contiguous))


def read_memories(
    mems: Any, masks: Any, count: int, batch: int, dim: int, others: Mapping[str, Any] | None = None
) -> RecurrentState | None:
    """Check the user's `mems` and return them as a state; None for none.

    Args:
        mems: `RecurrentState`, or a list of tensors [B, M, D]: all earlier tokens of a row, all valid.
        masks: [B, M] bool or None, True for tokens, False for padding; or a list of equal ones.
        count: number of recurrent steps of the model.
        others: further arguments of the forward, some of which cannot be combined with memories.

    Raises:
        ValueError: for an invalid argument; names it, its value and the accepted values.
    """
    check_combination(mems, masks, False, others or {})
    if mems is None:
        return None
    wanted = f"{count} tensors of shape [{batch}, M, {dim}], one for each recurrent step of this model"
    if not isinstance(mems, (RecurrentState, list, tuple)) or not all(
        isinstance(one, Tensor) for one in mems
    ):
        raise ValueError(f"`mems` must be a result of `return_mems`, {wanted}, but is {type(mems).__name__}")
    hiddens = tuple(mems)
    if len(hiddens) != count or not all(_fits(one, batch, hiddens[0].shape[1:2], dim) for one in hiddens):
        shown = " and ".join(str(list(shape)) for shape in sorted({tuple(one.shape) for one in hiddens})[:3])
        raise ValueError(f"`mems` must hold {wanted}, but holds {len(hiddens)} of shape {shown or 'nothing'}")
    if not all(hidden.is_floating_point() for hidden in hiddens):
        raise ValueError(f"`mems` must hold floating point numbers, but holds {hiddens[0].dtype}")
    if not isinstance(mems, RecurrentState):
        mems = RecurrentState(hiddens, Layout.arange(hiddens[0].shape[1], hiddens[0].device))
    return mems if masks is None else mems.masked_by(_one_mask(masks, batch, mems.length))


def _fits(hidden: Tensor, batch: int, length: Sequence[int], dim: int) -> bool:
    if hidden.dim() != 3 or hidden.shape[0] != batch or hidden.shape[2] != dim:
        return False
    return hidden.shape[1] == length[0] > 0


def _one_mask(masks: Any, batch: int, length: int) -> Tensor:
    given: list[Any] = list(masks) if isinstance(masks, (list, tuple)) else [masks]
    for mask in given or [None]:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (batch, length):
            wanted = (
                f"boolean of shape [{batch}, {length}] (True = token, False = padding), or a list of such"
            )
            raise ValueError(f"`mem_masks` must be {wanted}")
    if any(mask is not given[0] and not torch.equal(mask, given[0]) for mask in given[1:]):
        raise ValueError("`mem_masks` must be the same for all memories, which are of the same tokens")
    return given[0]


# Why arguments cannot be combined with `mems` or `return_mems`.
NEVER = {
    "state": "a decode state already holds the earlier tokens",
    "seq_lens": "memories continue one sequence per row",
    "prepend_embeds": "they would come between memories and tokens",
}
ONLY_FIRST = {
    "seq_start_pos": "left padding belongs to the first segment: pad later ones at the right, by `mask`",
    "prefix_attn_len": "a prefix belongs to the first segment, which the memories hold",
}


def check_combination(mems: Any, masks: Any, return_mems: bool, others: Mapping[str, Any]) -> None:
    """Refuse arguments that cannot be combined with `mems` or `return_mems`."""
    if masks is not None and mems is None:
        raise ValueError("`mem_masks` needs the `mems` that it masks, but `mems` is None")
    name = "mems" if mems is not None else "return_mems"
    reasons = {**NEVER, **ONLY_FIRST} if mems is not None else NEVER if return_mems else {}
    for other, reason in reasons.items():
        if others.get(other) is not None:
            raise ValueError(f"`{name}` and `{other}` cannot be combined: {reason}")
