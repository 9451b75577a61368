"""What a kernel needs to know of queries and keys beside the tensors: who meets whom, and the bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.distances import Distances
from flagformer.flow.layout import Layout
from flagformer.flow.mask import Mask


@dataclass(frozen=True)
class Pairs:
    """Queries against keys, with `seats` keys in front that have no position.

    Made once a forward and shared by its layers. Seats are seen by every query and have no bias.

    Attributes:
        causal: the whole rule is "no later key", query i standing at key seats + i.
        visible: [1 or B, 1 or H, 1 or T, seats + S] bool; None when every pair meets or `causal` says it.
        bias: [1 or B, H, T, seats + S], minus infinity where a pair may not meet; None without a bias.
        hidden: [1 or B, 1 or H, T, 1] bool, queries that see no key at all; None when there are none.
        seats: how many keys in front have no position.
        learned: whether the bias wanted a gradient when the forward began. A sublayer that is computed again
            finds the same answer, whatever autograd is doing by then.
        distances: the table that says it all; only for kernels that asked for it (`reads_distances`).
    """

    causal: bool = False
    allowed: Tensor | None = None
    bias: Tensor | None = None
    fully_masked_rows: Tensor | None = None
    num_prefix_kv: int = 0
    distances: Distances | None = None
    learned: bool = False

    @staticmethod
    def of(mask: Mask, queries: Layout, keys: Layout, bias: Tensor | None = None, seats: int = 0) -> Pairs:
        """The pairs of two layouts under a mask; `bias` is [1 or B, H, T, S] without the seats."""
        aligned = queries.start == keys.start and queries.length == keys.length
        if mask.is_plain_causal and bias is None and aligned and queries.length > 1:
            return Pairs(causal=True, num_prefix_kv=seats)
        newest = mask.is_plain_causal and queries.length == 1 and queries.end == keys.end
        visible = None if newest else mask.dense(queries, keys)
        hidden = None
        if visible is not None:
            if mask.may_mask_all and not seats:
                hidden = ~visible.any(dim=-1, keepdim=True)
            visible = F.pad(visible, (seats, 0), value=True) if seats else visible
        learned = bias is not None and bias.requires_grad
        if bias is not None:
            bias = F.pad(bias, (seats, 0)) if seats else bias
            bias = bias if visible is None else bias.masked_fill(~visible, float("-inf"))
        return Pairs(False, visible, bias, hidden, seats, learned=learned)

    @staticmethod
    def few(visible: Tensor, bias: Tensor | None, seats: int, hides: bool, learned: bool) -> Pairs:
        """Pairs that a core has picked: visible [B, 1 or H, T, S], bias [B, H, T, S], without the seats.

        `hides`: whether a query may see nothing; `learned`: as above.
        """
        hidden = ~visible.any(dim=-1, keepdim=True) if hides and not seats else None
        visible = F.pad(visible, (seats, 0), value=True) if seats else visible
        if bias is not None:
            bias = (F.pad(bias, (seats, 0)) if seats else bias).masked_fill(~visible, float("-inf"))
        return Pairs(False, visible, bias, hidden, seats, learned=learned)

    def apart(self, queries: int, keys: int, device: torch.device) -> Pairs:
        """The same where keys are queries: each sees itself only where it sees nothing else."""
        assert self.distances is None
        own = torch.arange(queries, device=device)[:, None] + keys - queries
        numbers = torch.arange(self.num_prefix_kv + keys, device=device) - self.num_prefix_kv
        seen = self.allowed
        if seen is None:
            seen = (numbers <= own)[None, None] if self.causal else torch.ones_like(own, dtype=torch.bool)
        itself = numbers == own
        others = seen & ~itself
        visible = (
            others if self.num_prefix_kv else others | (seen & itself & ~others.any(dim=-1, keepdim=True))
        )
        visible = visible.expand(1, 1, -1, -1) if visible.dim() == 2 else visible
        bias = None if self.bias is None else self.bias.masked_fill(~visible, float("-inf"))
        return replace(self, causal=False, allowed=visible, bias=bias)

    def of_heads(self, heads: slice) -> Pairs:
        """The same for some of the heads."""
        if self.distances is not None:
            return replace(self, distances=self.distances.of_heads(heads))
        parts = (self.allowed, self.bias, self.fully_masked_rows)
        visible, bias, hidden = (x[:, heads] if x is not None and x.shape[1] > 1 else x for x in parts)
        return replace(self, allowed=visible, bias=bias, fully_masked_rows=hidden)
