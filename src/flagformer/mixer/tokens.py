"""The tokens of a block that a mixer reads: which are valid, and where documents begin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagformer.flow import Layout


@dataclass(frozen=True)
class BlockTokens:
    """The tokens of a block.

    Attributes:
        valid: [B, T] bool, True for tokens, False for padding, at any place; None: all are valid.
        starts: [B, T] bool, True for the first token of a document, which reads nothing of the one before;
            None: the block continues one document.
    """

    valid: Tensor | None = None
    starts: Tensor | None = None

    @staticmethod
    def of(layout: Layout, rows: int, write_mask: Tensor | None = None) -> BlockTokens:
        """The tokens of a layout for B = `rows`; those that are False in `write_mask` [B, T] are not read."""
        valid = None if layout.valid is None else layout.valid.expand(rows, -1)
        if write_mask is not None:
            valid = write_mask if valid is None else valid & write_mask
        if layout.segment_ids is None:
            return BlockTokens(valid)
        return BlockTokens.packed(layout.segment_ids.expand(rows, -1), valid)

    @staticmethod
    def packed(segment_ids: Tensor, valid: Tensor | None = None) -> BlockTokens:
        """Documents of packed rows: segment_ids [B, T] long; padding belongs to none."""
        none = torch.full_like(segment_ids[:, :1], -1)
        if valid is None:
            return BlockTokens(None, segment_ids != torch.cat([none, segment_ids[:, :-1]], dim=1))
        index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
        last = torch.where(valid, index, -1).cummax(dim=1).values
        last = torch.cat([none, last[:, :-1]], dim=1)  # the last valid token before each
        previous = torch.where(last >= 0, segment_ids.gather(1, last.clamp(min=0)), -1)
        return BlockTokens(valid, valid & (segment_ids != previous))

    def counts(self, x: Tensor) -> Tensor:
        """[B] long, the number of valid tokens of each row of x [B, T, D]."""
        if self.valid is None:
            return torch.full(x.shape[:1], x.shape[1], device=x.device)
        return self.valid.sum(dim=1)


class Compaction:
    """Moves the valid tokens of each row to its front, in order, and back; without padding the identity.

    A convolution then reads the last valid tokens, wherever padding stands.

    Attributes:
        valid: [B, T] bool, of the compacted rows; None without padding.
        starts: [B, T] bool, of the compacted rows; None for one document.
        counts: [B] long, the number of valid tokens; None without padding.
    """

    def __init__(self, tokens: BlockTokens) -> None:
        self.valid, self.starts = tokens.valid, tokens.starts
        self.counts: Tensor | None = None
        if tokens.valid is not None:
            self._order = (~tokens.valid).long().argsort(dim=1, stable=True)
            self._inverse = self._order.argsort(dim=1)
            self.counts = tokens.valid.sum(dim=1)
            self.valid = tokens.valid.gather(1, self._order)
            if tokens.starts is not None:
                self.starts = tokens.starts.gather(1, self._order) & self.valid

    def compact(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], zeros after the last valid token."""
        if self.valid is None:
            return x
        x = x.gather(1, self._order[..., None].expand_as(x))
        return x.masked_fill(~self.valid[..., None], 0.0)

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `compact`; arbitrary finite values at padding."""
        return x if self.valid is None else x.gather(1, self._inverse[..., None].expand_as(x))

    def only_valid(self, x: Tensor) -> Tensor:
        """Compacted rows [B, T, H] with zeros at padding."""
        return x if self.valid is None else x.masked_fill(~self.valid[..., None], 0.0)
