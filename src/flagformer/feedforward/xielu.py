"""xIELU (arXiv:2411.13010)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.feedforward import Activation
from flagformer.flags import component

BETA = 0.5  # slope at zero
START = 0.8  # initial alpha_p and alpha_n
# Upper bound of the exponent, as in the paper's code.
EXP_BELOW = -1e-6


@component("activation", select="ff_xielu", paper="arXiv:2411.13010, section 3")
class XIELU(nn.Module, Activation):
    """alpha_p x^2 + x / 2 for positive x, else alpha_n (e^x - 1 - x) + x / 2; both alphas are learned.

    One pair of alphas for each feedforward, as in Apertus; `alpha_p = softplus(a_p)`,
    `alpha_n = 0.5 + softplus(a_n)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha_p, math.log(math.expm1(START)))
        nn.init.constant_(self.alpha_n, math.log(math.expm1(START - BETA)))

    def forward(self, x: Tensor) -> Tensor:
        positive = F.softplus(self.alpha_p) * x * x
        negative = (BETA + F.softplus(self.alpha_n)) * (x.clamp(max=EXP_BELOW).expm1() - x)
        return torch.where(x > 0, positive, negative) + BETA * x
