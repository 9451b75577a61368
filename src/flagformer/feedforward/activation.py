"""Pointwise activations of the feedforward."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flagformer.feedforward import Activation
from flagformer.flags import component


@component("activation", paper="arXiv:1606.08415")
class GELU(Activation):
    """x times the standard normal CDF of x (the exact form, with erf)."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x)


@component("activation", select="ff_swish", paper="arXiv:1710.05941")
class Swish(Activation):
    """x * sigmoid(x), also called SiLU; with `ff_glu` this is SwiGLU."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)


@component("activation", select="ff_relu_squared", paper="arXiv:2109.08668, section 3")
class ReLUSquared(Activation):
    """max(x, 0) ** 2 (Primer)."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x).square()
