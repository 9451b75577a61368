"""Products of pairs of vectors of the same token, without copies for grouped heads."""

from __future__ import annotations

import torch
from torch import Tensor


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] -> [B, G, H / G, ...]."""
    return x.unflatten(1, (groups, -1))


def rowwise_dot(x: Tensor, y: Tensor) -> Tensor:
    """Dot products of the vectors of x [B, H, t, K] and y [B, G, t, K], as [B, H, t]."""
    return (_grouped(x, y.shape[1]) * y[:, :, None]).sum(dim=4).flatten(1, 2)


def addcmul_rows(x: Tensor, factors: Tensor, y: Tensor, out: Tensor) -> None:
    """Write x [B, H, t, K] + factors [B, H, t] * y [B, G, t, K] to out [B, H, t, K]."""
    x, factors, out = (_grouped(z, y.shape[1]) for z in (x, factors, out))
    torch.addcmul(x, factors[..., None], y[:, :, None], out=out)
