"""Products of each token's own vectors, read and written as they lie, a stretch of tokens at a time.

Of long rows a step on all tokens waits for memory; of a piece the results stay in a core's cache until the
next step reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 1 << 19  # of a piece, for each thread


def pieces(x: Tensor) -> list[slice]:
    """Of the T tokens of x [B, H, T, K], as many at a time as stay in a core's cache.

    All of them in a graph, and on other devices, where each call costs more than it saves.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return [slice(None)]
    batch, heads, length, width = x.shape
    size = max(NUMBERS * torch.get_num_threads() // (batch * heads * width), 1)
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] -> [B, G, H / G, ...]."""
    return x.unflatten(1, (groups, -1))


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Products of vectors of x [B, H, t, K] with those of y [B, G, t, K], [B, H, t]."""
    return (_grouped(x, y.shape[1]) * y[:, :, None]).sum(dim=4).flatten(1, 2)


def add_products(out: Tensor, factors: Tensor, y: Tensor) -> None:
    """Adds factors [B, H, t] times y [B, G, t, K] to out [B, H, t, K]."""
    to, of = (_grouped(x, y.shape[1]) for x in (out, factors))
    to.addcmul_(of[..., None], y[:, :, None])


def put_products(out: Tensor, factors: Tensor, x: Tensor) -> None:
    """Writes factors [B, H, t] times x [B, H, t, K], summed over a group, to out [B, G, t, K]."""
    if x.shape[1] == out.shape[1]:
        torch.mul(x, factors[..., None], out=out)
    else:
        out.copy_(_grouped(x * factors[..., None], out.shape[1]).sum(dim=2))
