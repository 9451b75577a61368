"""Operators without second derivatives."""

from __future__ import annotations

import torch


def refuse_second_gradients(what: str, instead: str) -> None:
    """Raise RuntimeError in a backward under `create_graph=True`, whose second derivatives would be wrong.

    `torch.autograd.function.once_differentiable` does not raise if the incoming gradient is a constant.

    Args:
        what: the part of the model that has no second derivatives.
        instead: advice that ends the message.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} has no second derivatives (`create_graph=True`); {instead}")
