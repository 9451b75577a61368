"""Directions without lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = 1e-12  # a shorter vector has no direction


def l2_normalize(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; zeros stay zeros."""
    return F.normalize(x, dim=-1)


def unit_and_length(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the lengths [...], never zero."""
    lengths = torch.linalg.vector_norm(x, dim=-1).clamp(min=NONE)
    return x / lengths[..., None], lengths
