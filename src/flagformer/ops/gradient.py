"""Scaled gradients."""

from __future__ import annotations

from torch import Tensor


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """x, with its gradient multiplied by `share`."""
    return x if share == 1 else x * share + x.detach() * (1 - share)
