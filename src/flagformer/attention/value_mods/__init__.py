"""Changes of the values of self-attention by what a token is, before they are cached."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import SideInputs


class ValueMod(nn.Module, ABC):
    """Contract of the slot `value_mod`, built as `(dims, groups)`: G key/value heads of `dims.dim_value`.

    It changes the values of the tokens of the call alone, so that those of earlier tokens are cached.
    Memories of earlier segments (`mems`) are refused with it.

    Attributes:
        reads_token_ids: whether it reads `side.token_ids`; models without ids refuse it.
    """

    reads_token_ids = False

    @abstractmethod
    def forward(self, v: Tensor, x: Tensor, side: SideInputs) -> Tensor:
        """Values [B, G, T, V] of the tokens x [B, T, D] -> the same shape, before their rotation."""
