"""What one forward leaves for the next: what attention read of earlier segments (arXiv:1901.02860)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flow.layout import Layout


@dataclass(frozen=True)
class RecurrentState:
    """M earlier tokens of each row; the next token stands directly behind them.

    Reads like the list of its tensors; beside them it knows where these tokens stand.

    Attributes:
        streams: [B, M, D] for each execution step that remembers: what it read, before its norm.
        layout: the standing of the M tokens. Real ones end each row; -1 is the position of one that is not
            there, and a row without any begins at position 0.
        slots: [B, slots, D], what segments wrote (Memformer, arXiv:2010.06891); None where there are none.
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
        """The same without gradient; under `slots=False` that of the slots stays."""
        kept = self.slots.detach() if slots and self.slots is not None else self.slots
        return replace(self, hiddens=tuple(stream.detach() for stream in self.hiddens), slots=kept)

    @staticmethod
    def of_slots(slots: Tensor) -> RecurrentState:
        """Slots alone."""
        return RecurrentState((), Layout.arange(0, slots.device), slots)

    def masked_by(self, padding: Tensor) -> RecurrentState:
        """The same with only those tokens real that are also True in `padding` [B, M]."""
        return replace(self, layout=self.layout.masked_by(padding))

    def shift_layout(self, layout: Layout) -> Layout:
        """The standing of a segment's tokens, behind these: positions and places go on."""
        padding, positions = layout.valid, layout.positions
        if padding is None and self.layout.valid is not None:
            padding = torch.ones_like(self.layout.valid[:, :1]).expand(-1, layout.length)
        if layout.contiguous_positions:
            positions = positions + self.layout.positions[:, -1:] + 1
        by_place = layout.contiguous_positions and self.layout.contiguous_positions
        return Layout(positions, padding, start=self.layout.end, contiguous_positions=by_place)

    @staticmethod
    def updated(
        streams: Sequence[Tensor], layout: Layout, held: RecurrentState | None, most: int
    ) -> RecurrentState:
        """The last `most` tokens of what was held and of a segment behind it.

        Padding at the end of the segment moves to the front of its row, so that real tokens stand together.
        """
        total = layout if held is None else held.layout.concat(layout)
        last = slice(max(0, total.length - most), None)
        if held is not None:
            streams = [torch.cat([old.to(new.dtype), new], dim=1) for old, new in zip(held.hiddens, streams)]
        start = total.end - min(most, total.length)
        if layout.valid is None:
            padding = None if total.valid is None else total.valid[:, last]
            standing = Layout(
                total.positions[:, last],
                padding,
                start=start,
                contiguous_positions=total.contiguous_positions,
            )
            # a slice would keep the whole segment
            kept = (stream[:, last].clone() if total.length > most else stream for stream in streams)
            return RecurrentState(tuple(kept), standing)
        assert total.valid is not None
        rows = streams[0].shape[0]
        places = torch.arange(1, layout.length + 1, device=layout.valid.device)
        behind = layout.length - (places * layout.valid).amax(dim=1)  # [1 or B], padding at the end
        source = torch.arange(total.length, device=behind.device)[last] - behind[:, None]
        there, source = (source >= 0).expand(rows, -1), source.clamp(min=0).expand(rows, -1)  # [B, M]
        positions = total.positions.expand(rows, -1).gather(1, source).masked_fill(~there, -1)
        padding = total.valid.expand(rows, -1).gather(1, source) & there
        moved = tuple(
            stream.gather(1, source[..., None].expand(-1, -1, stream.shape[2])) for stream in streams
        )
        return RecurrentState(
            moved, Layout(positions, padding, start=start, contiguous_positions=total.contiguous_positions)
        )


def read_memories(mems: Any, masks: Any, count: int, batch: int, dim: int) -> RecurrentState:
    """What a user hands over as `mems`, checked.

    Args:
        mems: `Memories`, or a list of tensors [B, M, D]: they are all that came before, and all real.
        masks: [B, M] bool or None, True for real tokens; or a list of them, which must all be the same.
        count: how many steps of the model remember.

    Raises:
        ValueError: naming the argument, what it was and what it must be.
    """
    wanted = f"{count} tensors of shape [{batch}, M, {dim}], one for each step of this model that remembers"
    if not isinstance(mems, (RecurrentState, list, tuple)) or not all(
        isinstance(one, Tensor) for one in mems
    ):
        raise ValueError(f"`mems` must be what `return_mems` gave, {wanted}, but is {type(mems).__name__}")
    streams = tuple(mems)
    if len(streams) != count or not all(_fits(one, batch, streams[0].shape[1:2], dim) for one in streams):
        shown = " and ".join(str(list(shape)) for shape in sorted({tuple(one.shape) for one in streams})[:3])
        raise ValueError(f"`mems` must hold {wanted}, but holds {len(streams)} of shape {shown or 'nothing'}")
    if not all(stream.is_floating_point() for stream in streams):
        raise ValueError(f"`mems` must hold floating point numbers, but holds {streams[0].dtype}")
    if not isinstance(mems, RecurrentState):
        mems = RecurrentState(streams, Layout.arange(streams[0].shape[1], streams[0].device))
    return mems if masks is None else mems.masked_by(_one_mask(masks, batch, mems.length))


def _fits(stream: Tensor, batch: int, length: Sequence[int], dim: int) -> bool:
    if stream.dim() != 3 or stream.shape[0] != batch or stream.shape[2] != dim:
        return False
    return stream.shape[1] == length[0] > 0


def _one_mask(masks: Any, batch: int, length: int) -> Tensor:
    given: list[Any] = list(masks) if isinstance(masks, (list, tuple)) else [masks]
    for mask in given or [None]:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (batch, length):
            wanted = f"boolean of shape [{batch}, {length}] (True = real token), or a list of such"
            raise ValueError(f"`mem_masks` must be {wanted}")
    if any(mask is not given[0] and not torch.equal(mask, given[0]) for mask in given[1:]):
        raise ValueError("`mem_masks` must be the same for all memories, which are of the same tokens")
    return given[0]


# Why arguments cannot be given beside `mems` or `return_mems`.
NEVER = {
    "state": "a decode state holds what came before already",
    "seq_lens": "memories continue one sequence a row",
    "prepend_embeds": "they would stand between memories and tokens",
}
ONLY_FIRST = {
    "seq_start_pos": "left padding belongs to the first segment: pad later ones at the right, by `mask`",
    "prefix_attn_len": "a prefix belongs to the first segment, and memories hold it",
}


def check_alone(mems: Any, masks: Any, leaves: bool, others: Mapping[str, Any]) -> None:
    """Refuses what contradicts memories that come in (`mems`) or are asked for (`leaves`)."""
    if masks is not None and mems is None:
        raise ValueError("`mem_masks` must come with the `mems` that they mask, but came alone")
    name = "mems" if mems is not None else "return_mems"
    reasons = {**NEVER, **ONLY_FIRST} if mems is not None else NEVER if leaves else {}
    for other, reason in reasons.items():
        if others.get(other) is not None:
            raise ValueError(f"`{name}` and `{other}` cannot be combined: {reason}")
