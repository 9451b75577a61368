"""Operators that have first gradients only."""

from __future__ import annotations

import torch


def refuse_second_gradients(what: str, instead: str) -> None:
    """RuntimeError in a backward under `create_graph=True`, whose gradients would miss a part without a word.

    `torch.autograd.function.once_differentiable` is silent where the incoming gradient is a constant.

    Args:
        what: the part of the model that has no second derivatives.
        instead: what to do.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} has no second derivatives (`create_graph=True`); {instead}")
