"""Positions of three kinds: rotations of q and k, biases of scores, vectors added to embeddings.

Each is a function of explicit integer positions: padding, packing and caches only change the positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flow import Layout

CosSin = tuple[Tensor, ...]


class Rotation(nn.Module, ABC):
    """Contract of the slot `rotation`: q and k are each turned by their own positions.

    `width` is how many dims of a head are turned; 0: none.
    """

    width: int = 0

    @abstractmethod
    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> CosSin | None:
        """What every layer turns by, computed once a forward."""

    @abstractmethod
    def queries(self, q: Tensor, angles: CosSin | None) -> Tensor:
        """[B, H, T, K] -> the same shape."""

    @abstractmethod
    def keys(self, k: Tensor, angles: CosSin | None) -> Tensor:
        """[B, G, T, K] -> the same shape."""

    def both(self, q: Tensor, k: Tensor, angles: CosSin | None) -> Sequence[Tensor]:
        """`queries` and `keys` of the same tokens."""
        return self.queries(q, angles), self.keys(k, angles)


class PositionBias(nn.Module, ABC):
    """Contract of the slot `position_bias`.

    Methods call the module for what its parameters say: FSDP2 gathers them in `forward` alone.
    """

    @abstractmethod
    def between(self, queries: Layout, keys: Layout) -> Tensor | None:
        """[1 or B, H, T, S], added to the scaled scores; None for no bias."""

    def embedding(self) -> Tensor | None:
        """[N, D], vectors that the scores of all layers read; None: there are none."""
        return None

    def score_mods(self, projection: nn.Module, qk_norm: nn.Module, scale: float) -> Sequence[Any]:
        """Modules of the contract of the slot `score` that self-attention applies first.

        Args:
            projection, qk_norm: of the attention.
            scale: of its scores.
        """
        return ()

    # Biases of distances from here on are equal, those of later keys aside; None: not known.
    saturation_distance: int | None = None

    def relative_table(self, nearest: int, farthest: int, device: torch.device) -> Tensor | None:
        """[1 or H, L], the biases of the distances nearest ... farthest; None where these do not say it."""
        return None

    @abstractmethod
    def decode_table(self, length: int, device: torch.device) -> Tensor | None:
        """[H, length], the biases of the distances length - 1 ... 0: what a decoding session keeps."""


class DistanceBias(PositionBias):
    """A bias that is one formula of the distance q - k, with a number per head."""

    @abstractmethod
    def forward(self, distance: Tensor) -> Tensor:
        """Distances [...] long, positive for earlier keys -> biases [..., H]."""

    def between(self, queries: Layout, keys: Layout) -> Tensor:
        if queries.contiguous_positions and keys.contiguous_positions:
            return self._toeplitz(queries, keys)
        distance = queries.positions[:, :, None] - keys.positions[:, None]  # [1 or B, T, S]
        return self(distance).permute(0, 3, 1, 2)

    def relative_table(self, nearest: int, farthest: int, device: torch.device) -> Tensor:
        return self(torch.arange(nearest, farthest + 1, device=device)).t()

    def decode_table(self, length: int, device: torch.device) -> Tensor:
        return self(torch.arange(length - 1, -1, -1, device=device)).t().contiguous()

    def _toeplitz(self, queries: Layout, keys: Layout) -> Tensor:
        """Every distance once, then all pairs read from them: T + S - 1 evaluations in place of T * S."""
        farthest = queries.end - 1 - keys.start
        nearest = queries.start - (keys.end - 1)
        distance = torch.arange(farthest, nearest - 1, -1, device=queries.positions.device)
        table = self(distance).t()  # [H, T + S - 1], from the farthest key of the last query on
        if torch.compiler.is_compiling():  # `unfold` and gradients of strided views fix a graph's length
            last = torch.arange(queries.length - 1, -1, -1, device=distance.device)
            at = last[:, None] + torch.arange(keys.length, device=distance.device)  # [T, S]
            return table.index_select(1, at.flatten()).view(1, -1, *at.shape)
        return table.unfold(1, keys.length, 1).flip(1)[None]


class AbsolutePosition(nn.Module, ABC):
    """Contract of the slot `absolute`: a vector for every position, added to the token's embedding."""

    limit: int | None  # positions must be below it; None: any

    @abstractmethod
    def forward(self, positions: Tensor) -> Tensor | float:
        """[1 or B, T] long -> [1 or B, T, D], or zero."""
