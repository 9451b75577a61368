"""Directions without lengths."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unit_length(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; zeros stay zeros."""
    return F.normalize(x, dim=-1)
