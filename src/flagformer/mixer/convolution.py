"""A causal convolution over time, separate for each dimension, with the last tokens as its state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.mixer.tokens import Compaction


class CausalConvolution(nn.Module):
    """out[t] = bias + sum over i < W of weight[:, W - 1 - i] x[t - i], per dimension; [B, T, D] -> [B, T, D].

    Args:
        dim: D.
        kernel: W, the number of tokens that one output reads.
        bias: whether there is a bias.
    """

    def __init__(self, dim: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(dim, kernel))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Conv1d`: uniform in +- W ** -0.5."""
        bound = self.kernel**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, tail: Tensor, rows: Compaction) -> tuple[Tensor, Tensor]:
        """Convolve a block.

        Args:
            x: [B, T, D], compacted.
            tail: [B, W - 1, D], the last valid tokens before the block; zeros where there are none.
            rows: the compaction of x.

        Returns:
            [B, T, D], and the tail of the next block.
        """
        length, width = x.shape[1], self.kernel
        row = torch.cat([tail.to(x.dtype), x], dim=1)
        weight = self.weight.to(x.dtype)
        number = None if rows.starts is None else F.pad(rows.starts.cumsum(dim=1), (width - 1, 0))
        out = row[:, width - 1 :] * weight[:, -1]
        for tap in range(width - 1):
            term = row[:, tap : tap + length] * weight[:, tap]
            if number is not None:
                same = number[:, tap : tap + length] == number[:, width - 1 :]
                term = term.masked_fill(~same[..., None], 0.0)
            out = out + term
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out, self._tail(row, length, number, rows)

    def _tail(self, row: Tensor, length: int, number: Tensor | None, rows: Compaction) -> Tensor:
        """The last W - 1 valid tokens of each row's last document, zeros before it."""
        index = torch.arange(self.kernel - 1, device=row.device)
        if rows.counts is None:
            tail = row[:, length:]
            last = None if number is None else number[:, length:]
        else:
            index = rows.counts[:, None] + index
            tail = row.gather(1, index[..., None].expand(-1, -1, row.shape[2]))
            last = None if number is None else number.gather(1, index)
        if last is None:
            return tail
        return tail.masked_fill((last != last[:, -1:])[..., None], 0.0)
