"""L2 normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # as in `F.normalize`


def l2_normalize(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; zeros stay zeros."""
    return F.normalize(x, dim=-1)


def unit_and_length(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| over the last dimension, and the norms [...], at least EPS."""
    lengths = torch.linalg.vector_norm(x, dim=-1).clamp(min=EPS)
    return x / lengths[..., None], lengths
