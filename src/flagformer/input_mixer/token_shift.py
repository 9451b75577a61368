"""Token shift: some dimensions of each token are those of its neighbours (B. Peng, without a paper)."""

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
    """The i-th group of a token's dimensions is taken from the i-th token before it.

    n shifts divide the dimensions of causal layers into n + 1 groups, the first of them not shifted; those of
    bidirectional layers into 2 n + 1, from the n-th next token to the n-th previous one. Padding, tokens of
    another segment and positions outside the row count as zeros.
    """

    reads_previous = True

    def __init__(
        self,
        dims: Dims,
        *,
        shifts: Annotated[
            int,
            Flag("shift_tokens", "number of neighbours on each side to take dimensions from", ge=0),
        ],
    ) -> None:
        groups = shifts + 1 if dims.causal else 2 * shifts + 1
        if groups > dims.dim:
            text = f"`shift_tokens` must leave a dimension for each group of `dim` = {dims.dim}"
            raise FlagError([Finding("shift_tokens", f"{text}, but is {shifts}")])
        self.shifts, self.dim = shifts, dims.dim

    def groups(self, bidirectional: bool) -> list[tuple[int, slice]]:
        """(shift, dimensions) of each group that is shifted."""
        shifts = range(-self.shifts if bidirectional else 0, self.shifts + 1)
        width = self.dim // len(shifts)
        return [(shift, slice(i * width, (i + 1) * width)) for i, shift in enumerate(shifts) if shift]

    def __call__(self, x: Tensor, side: SideInputs) -> Tensor:
        layout = side.layout
        source = x if layout.valid is None else x.masked_fill(~layout.valid[..., None], 0.0)
        if side.state is None:
            shifted = [
                (dims, shift_by(source[..., dims], shift, layout))
                for shift, dims in self.groups(side.bias.is_bidirectional)
            ]
        else:
            cache = side.state.input_mixer_caches[side.step]
            assert isinstance(cache, TokenShiftCache)
            cache.extend(source, layout.start, side.state.write_mask)
            shifted = [
                (dims, cache.shifted(shift, dims, layout).to(x.dtype))
                for shift, dims in self.groups(side.bias.is_bidirectional)
            ]
        outputs, end = [], 0
        for dims, group in shifted:
            outputs += [x[..., end : dims.start], group]
            end = dims.stop
        return torch.cat([*outputs, x[..., end:]], dim=-1)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> TokenShiftCache:
        return TokenShiftCache(
            torch.zeros(state.batch, self.shifts + state.capacity, self.dim, dtype=dtype, device=device),
            self.shifts,
        )


def shift_by(x: Tensor, shift: int, layout: Layout) -> Tensor:
    """Shift tokens [B, T, ...] by `shift` positions towards the end, within their segment."""
    length = x.shape[1]
    before, after = max(shift, 0), max(-shift, 0)
    shifted = F.pad(x, (0, 0, before, after))[:, after : after + length]
    if layout.segment_ids is None:
        return shifted
    segments = layout.segment_ids + 1  # 0: outside the row
    source = F.pad(segments, (before, after))[:, after : after + length]
    return shifted.masked_fill((source != segments)[..., None], 0.0)
