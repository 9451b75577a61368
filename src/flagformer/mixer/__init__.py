"""Mixers: sublayers that mix tokens over time by a state of fixed size, in place of attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flagformer.flow import DecodeState, SideInputs
from flagformer.mixer.cache import KEPT, RecurrentCache
from flagformer.mixer.tokens import BlockTokens

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class StateField:
    """A tensor of a mixer's state.

    Attributes:
        shape: of one row.
        full: kept in fp32, or fp64 for a model in fp64, whatever the dtype of the model; else in its dtype.
    """

    shape: tuple[int, ...]
    full: bool = False


class Mixer(nn.Module, ABC):
    """Contract of the slot `sequence_mixer`, built as `(dims)`: [B, T, D] -> [B, T, D], causal.

    A mixer declares its state and computes a function of it; it stores none. Padding may hold any values and
    may stand anywhere: it is not read.

    Attributes:
        dim: the width D of the model.
        w_out: the output projection.
    """

    dim: int
    w_out: nn.Linear

    @abstractmethod
    def fields(self) -> dict[str, StateField]:
        """The tensors of its state, by name. All are zero before the first token."""

    @abstractmethod
    def mix(self, x: Tensor, tokens: BlockTokens, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Read a block after those that gave `state`.

        Args:
            x: [B, T, D].
            tokens: which of them are valid, and where documents begin.
            state: the tensors of `fields`, [B, *shape]. They are not changed.

        Returns:
            [B, T, D], and the state after the block.
        """

    def kernel(self) -> str:
        """The implementation that runs on its device and the reason, for `explain`; empty if there is one."""
        return ""

    def initial_state(self, rows: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The state of B = `rows` before the first token, for a model in `dtype`."""
        full = torch.promote_types(dtype, torch.float32)
        return {
            name: torch.zeros(rows, *field.shape, dtype=full if field.full else dtype, device=device)
            for name, field in self.fields().items()
        }

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        if side.state is None:
            tokens = BlockTokens.of(side.layout, x.shape[0])
            return self.mix(x, tokens, self.initial_state(x.shape[0], x.dtype, x.device))[0]
        tokens = BlockTokens.of(side.layout, x.shape[0], side.state.write_mask)
        cache = side.state.mixer_caches[side.step]
        assert isinstance(cache, RecurrentCache)
        return cache.extend(self.mix, x, tokens)

    def init_cache(self, state: DecodeState, dtype: torch.dtype, device: torch.device) -> RecurrentCache:
        """The state of one execution step for decoding."""
        block = torch.zeros(state.batch, KEPT, self.dim, dtype=dtype, device=device)
        return RecurrentCache(self.initial_state(state.batch, dtype, device), block)

    @property
    def cache_shape(self) -> tuple[int, ...]:
        """The sizes of its state, which differ between mixers that cannot share one."""
        return tuple(size for field in self.fields().values() for size in field.shape)
