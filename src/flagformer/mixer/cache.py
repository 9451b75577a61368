"""The state of a mixer in a decoding session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flagformer.flow import TruncatedCache
from flagformer.mixer.tokens import BlockTokens

State = dict[str, Tensor]
Mix = Callable[[Tensor, BlockTokens, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
# Tokens of a block up to which its inputs are kept, so that `truncate` can remove some of them.
KEPT = 32


class RecurrentCache(TruncatedCache):
    """The state after the tokens read so far, and the last block, of which tokens can be removed.

    A recurrent state cannot forget. `truncate` goes back to the state before the last block, and the next
    `extend` reads those tokens of the block again that remain. All tensors are preallocated.

    Attributes:
        state: the tensors of the mixer's state, [B, ...].
        row_lengths: [B] long, the number of valid tokens read in each row.
    """

    counters = ("_block_length", "_read_again")

    def __init__(self, state: State, block: Tensor) -> None:
        """Take the state before the first token, and a tensor [B, KEPT, D] for the inputs of a block."""
        self.state, self._before = state, {name: one.clone() for name, one in state.items()}
        self.row_lengths = torch.zeros(block.shape[0], dtype=torch.long, device=block.device)
        self._row_lengths_before = self.row_lengths.clone()
        self._block = block
        self._valid = torch.zeros(block.shape[:2], dtype=torch.bool, device=block.device)
        self._block_length = 0
        self._read_again = False

    def extend(self, mix: Mix, x: Tensor, tokens: BlockTokens) -> Tensor:
        """Read a block x [B, T, D] of one document by `Mixer.mix`; return its outputs."""
        assert tokens.starts is None, "a decode state has no segments"
        if self._read_again:
            length = self._block_length
            remaining = BlockTokens(self._valid[:, :length])
            self._write(mix(self._block[:, :length].to(x.dtype), remaining, self.state)[1])
            self._read_again = False
        for name, one in self._before.items():
            one.copy_(self.state[name])
        self._row_lengths_before.copy_(self.row_lengths)
        length = self._block_length = x.shape[1]
        if length <= KEPT:
            self._block[:, :length].copy_(x.detach())
            self._valid[:, :length] = True if tokens.valid is None else tokens.valid
        out, state = mix(x, tokens, self.state)
        self._write(state)
        self.row_lengths += tokens.counts(x)
        return out

    def truncate(self, row_lengths: Tensor) -> None:
        """Keep the first `row_lengths` [B] valid tokens of each row.

        Raises:
            ValueError: for tokens before the last block, or some tokens of a block of more than KEPT.
        """
        kept = torch.minimum(row_lengths.to(self.row_lengths.device), self.row_lengths)
        first = self._row_lengths_before
        if bool((kept == self.row_lengths).all()):
            return
        if not bool(kept.any()):
            for one in self._before.values():
                one.zero_()
            first.zero_()
        elif bool((kept < first).any()):
            raise ValueError(
                f"`length` must keep the first {first.tolist()} tokens of the rows, but keeps "
                f"{kept.tolist()}: a recurrent state (`mixer`) can only forget tokens of the last block"
            )
        elif self._block_length > KEPT and bool((kept > first).any()):
            raise ValueError(
                f"`length` must keep the first {first.tolist()} tokens of the rows or all of them, but keeps "
                f"{kept.tolist()}: of a block of more than {KEPT} tokens a recurrent state (`mixer`) can "
                "only forget all"
            )
        self._write(self._before)
        self._read_again = bool((kept > first).any())
        if self._read_again:
            valid = self._valid[:, : self._block_length]
            valid &= valid.cumsum(dim=1) <= (kept - first)[:, None]
        self.row_lengths.copy_(kept)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {
            **{f"after {name}": one for name, one in self.state.items()},
            **{f"before {name}": one for name, one in self._before.items()},
            "row_lengths": self.row_lengths,
            "row_lengths_before": self._row_lengths_before,
            "block": self._block,
            "valid": self._valid,
        }

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.state = {name: tensors[f"after {name}"] for name in self.state}
        self._before = {name: tensors[f"before {name}"] for name in self._before}
        self.row_lengths, self._row_lengths_before = tensors["row_lengths"], tensors["row_lengths_before"]
        self._block, self._valid = tensors["block"], tensors["valid"]

    def _write(self, state: Mapping[str, Tensor]) -> None:
        for name, one in self.state.items():
            one.copy_(state[name].detach())
