"""Token shift: a part of each token's dimensions comes from its neighbours (B. Peng, without a paper)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import DecodeState, Dims, Layout, SideInputs, TokenShiftCache
from flagformer.input_mixer import InputMixer


@component("input_mixer", select="shift_tokens")
class TokenShift(InputMixer):
    """The i-th part of a token's dimensions is that of the i-th token before it.

    With n shifts the dimensions fall into n + 1 parts, the first of them unmoved; where later tokens may be
    seen, into 2 n + 1, from the n-th token behind to the n-th before. Tokens that are padding, of another
    segment or not there give zeros.
    """

    reads_previous = True

    def __init__(
        self,
        dims: Dims,
        *,
        shifts: Annotated[
            int, Flag("shift_tokens", "neighbours on each visible side that give a part", ge=0)
        ],
    ) -> None:
        parts = shifts + 1 if dims.causal else 2 * shifts + 1
        if parts > dims.dim:
            text = f"`shift_tokens` must leave a dimension to each part of `dim` = {dims.dim}"
            raise FlagError([Finding("shift_tokens", f"{text}, but is {shifts}")])
        self.shifts, self.dim = shifts, dims.dim

    def parts(self, later: bool) -> list[tuple[int, slice]]:
        """(how far it moves, its dimensions) for each part that moves."""
        moves = range(-self.shifts if later else 0, self.shifts + 1)
        width = self.dim // len(moves)
        return [(move, slice(i * width, (i + 1) * width)) for i, move in enumerate(moves) if move]

    def __call__(self, x: Tensor, side: SideInputs) -> Tensor:
        layout = side.layout
        real = x if layout.valid is None else x.masked_fill(~layout.valid[..., None], 0.0)
        if side.state is None:
            moved = [
                (dims, moved_by(real[..., dims], move, layout))
                for move, dims in self.parts(side.bias.is_bidirectional)
            ]
        else:
            cache = side.state.input_mixer_caches[side.step]
            assert isinstance(cache, TokenShiftCache)
            cache.extend(real, layout.start, side.state.write_mask)
            moved = [
                (dims, cache.shifted(move, dims, layout).to(x.dtype))
                for move, dims in self.parts(side.bias.is_bidirectional)
            ]
        pieces, end = [], 0
        for dims, piece in moved:
            pieces += [x[..., end : dims.start], piece]
            end = dims.stop
        return torch.cat([*pieces, x[..., end:]], dim=-1)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> TokenShiftCache:
        return TokenShiftCache(
            torch.zeros(state.batch, self.shifts + state.capacity, self.dim, dtype=dtype, device=device),
            self.shifts,
        )


def moved_by(x: Tensor, move: int, layout: Layout) -> Tensor:
    """[B, T, ...] with each token's vector at the place `move` behind its own, within its segment."""
    length = x.shape[1]
    front, back = max(move, 0), max(-move, 0)
    moved = F.pad(x, (0, 0, front, back))[:, back : back + length]
    if layout.segment_ids is None:
        return moved
    numbers = layout.segment_ids + 1  # zero is nobody's
    origin = F.pad(numbers, (front, back))[:, back : back + length]
    return moved.masked_fill((origin != numbers)[..., None], 0.0)
