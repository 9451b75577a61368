"""The biases of scores of one attention, with their cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flagformer.attention.score_bias import ScoreBias
from flagformer.flow import DecodeState, KVCache, SideInputs
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.identity import as_module


class ScoreBiases(nn.Module):
    """(x, side) -> the sum of all s of the biases, [B, H, S], for the keys of self-attention.

    Args:
        window: number of last tokens a query attends to; None: all.
    """

    biases: Sequence[ScoreBias]  # a module list, typed by its elements

    def __init__(self, biases: Sequence[ScoreBias], heads: int, window: int | None) -> None:
        super().__init__()
        self.biases = nn.ModuleList(map(as_module, biases))  # type: ignore[assignment]
        self.heads, self.window = heads, window

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        if side.memory is not None and side.memory.mem is not None:
            x, side = torch.cat([side.memory.mem, x], dim=1), replace(side, layout=side.bias.kv)
        numbers = {str(index): bias(x, side) for index, bias in enumerate(self.biases)}
        if side.layout.valid is not None:
            padding = ~side.layout.valid[:, None]
            numbers = {name: one.masked_fill(padding, 0.0) for name, one in numbers.items()}
        state = side.state
        if state is not None:
            cache, first = state.score_bias_caches[side.step], state.window_start(self.window)
            new = {name: one[..., None] for name, one in numbers.items()}
            cached = cache.extend(new, state.length, first, state.write_mask)
            numbers = {name: one[..., 0] for name, one in cached.items()}
        total = [bias.sums(one) for bias, one in zip(self.biases, numbers.values())]
        return sum(total[1:], total[0])

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> KVCache:
        shape = (state.batch, self.heads, state.capacity, 1)
        names = map(str, range(len(self.biases)))
        return KVCache({one: torch.empty(shape, dtype=accum_dtype(dtype), device=device) for one in names})
