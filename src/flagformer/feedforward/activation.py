"""Pointwise activations of the feedforward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.feedforward import Activation
from flagformer.flags import Flag, component
from flagformer.ops.identity import identity


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
        return relu_squared(x)


def relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by a tanh (1606.08415, section 2), as in GPT-2 and Gemma."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (1606.08415, section 2), as in CLIP and, with `ff_glu`, gpt-oss."""
    return x * torch.sigmoid(1.702 * x)


# The names of transformers' configurations, except for gelu_tanh ("gelu_pytorch_tanh").
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu_squared,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": identity,
}


@component("activation", select="ff_activation")
class NamedActivation(Activation):
    """An activation by its name."""

    def __init__(
        self,
        *,
        name: Annotated[
            str | None,
            Flag(
                "ff_activation",
                "activation by name, as `hidden_act` of transformers",
                choices=tuple(ACTIVATIONS),
                example="relu",
            ),
        ] = None,
    ) -> None:
        self.function = ACTIVATIONS[name or "gelu"]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)
