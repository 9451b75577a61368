"""Feedforward sublayers, applied to each token independently."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import SideInputs


class FeedForward(nn.Module, ABC):
    """Contract of the slot `feedforward`, built as `(dims, activation)`: [B, T, D] -> [B, T, D]."""

    reads_activation = True  # whether the activation is used
    has_aux_loss = False  # whether it adds auxiliary losses to the collector in training

    @abstractmethod
    def forward(self, x: Tensor, side: SideInputs) -> Tensor: ...


class Activation(ABC):
    """Contract of the slot `activation`: a pointwise function.

    Any function, module or class without arguments can fill it: `activation=torch.tanh`, `nn.Mish`.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...
