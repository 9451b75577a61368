"""The decay of a recurrent state, by a step that each token chooses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.ops.full_precision import accum_dtype

RATES = (1.0, 16.0)  # of a new layer, as in Mamba 2's published code
STEPS = (1e-3, 1e-1)


class Decay(nn.Module):
    """step = softplus(x + dt_bias); decay = -exp(log_rate) step, for each of H heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rates uniform in 1 ... 16, steps log-uniform in 0.001 ... 0.1 at x = 0."""
        with torch.no_grad():
            self.log_rate.uniform_(*RATES).log_()
            low, high = (math.log(step) for step in STEPS)
            step = self.dt_bias.uniform_(low, high).exp_()
            step.add_(torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H] -> step and decay, [B, T, H], in fp32 (fp64 for fp64)."""
        dtype = accum_dtype(x.dtype)
        step = F.softplus(x.to(dtype) + self.dt_bias.to(dtype))
        return step, -self.log_rate.to(dtype).exp() * step
