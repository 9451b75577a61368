"""Products of each token's own vectors, read and written as they lie, a stretch of tokens at a time.

Of long rows a step on all tokens waits for memory; of a stretch the results stay in a core's cache until the
next step reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 1 << 18  # of a stretch


def pieces(x: Tensor) -> list[slice]:
    """Of the T tokens of x [B, H, T, K], as many at a time as stay in a core's cache.

    All of them in a graph, and on other devices, where each call costs more than it saves.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return [slice(None)]
    batch, heads, length, width = x.shape
    size = max(NUMBERS // (batch * heads * width), 1)
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]


def own_rows(x: Tensor, own: int, length: int) -> Tensor:
    """Of x [B, G, S, K] the queries' own, [B, G, T, K]."""
    return x[:, :, own : own + length]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] -> [B, G, H / G, ...]."""
    return x.unflatten(1, (groups, -1))


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Products of vectors of x [B, H, T, K] with those of y [B, G, T, K], [B, H, T]."""
    found = x.new_empty(x.shape[:3])
    for piece in pieces(x):
        product = _grouped(x[:, :, piece], y.shape[1]) * y[:, :, None, piece]
        found[:, :, piece] = product.sum(dim=4).flatten(1, 2)
    return found


def add_products(out: Tensor, factors: Tensor, y: Tensor) -> None:
    """Adds factors [B, H, T] times y [B, G, T, K] to out [B, H, T, K]."""
    for piece in pieces(out):
        to, of = (_grouped(x[:, :, piece], y.shape[1]) for x in (out, factors))
        to.addcmul_(of[..., None], y[:, :, None, piece])


def put_products(out: Tensor, own: int, factors: Tensor, x: Tensor) -> None:
    """Writes factors [B, H, T] times x [B, H, T, K], summed over a group, to the own of out [B, G, S, K], and
    zeros elsewhere."""
    to = own_rows(out, own, x.shape[2])
    for piece in pieces(x):
        product = x[:, :, piece] * factors[:, :, piece, None]
        to[:, :, piece] = _grouped(product, out.shape[1]).sum(dim=2)
    out[:, :, :own] = 0
    out[:, :, own + x.shape[2] :] = 0
