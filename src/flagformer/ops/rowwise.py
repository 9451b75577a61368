"""Products of each token's own vectors, read and written as they lie."""

from __future__ import annotations

import torch
from torch import Tensor


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] -> [B, G, H / G, ...]."""
    return x.unflatten(1, (groups, -1))


def rowwise_dot(x: Tensor, y: Tensor) -> Tensor:
    """Products of vectors of x [B, H, t, K] with those of y [B, G, t, K], [B, H, t]."""
    return (_grouped(x, y.shape[1]) * y[:, :, None]).sum(dim=4).flatten(1, 2)


def addcmul_rows(x: Tensor, factors: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes x [B, H, t, K] and factors [B, H, t] times y [B, G, t, K] to out [B, H, t, K]."""
    more, of, to = (_grouped(z, y.shape[1]) for z in (x, factors, out))
    torch.addcmul(more, of[..., None], y[:, :, None], out=to)
