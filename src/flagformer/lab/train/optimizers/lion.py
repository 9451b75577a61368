"""Lion (arXiv:2302.06675)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from flagformer.lab.train.optimizers import Group, Optimizer


class Lion(Optimizer):
    """The sign of an average of momentum and gradient; rates are 3 to 10 times smaller than AdamW's."""

    name: Literal["lion"] = "lion"
    betas: tuple[float, float] = Field(
        default=(0.9, 0.99), description="Shares of the momentum in the update, and in the next momentum."
    )

    title: ClassVar[str] = "Lion"
    summary: ClassVar[str] = "The sign of an average of momentum and gradient (arXiv:2302.06675)."

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"`betas` must both be at least 0 and below 1, but are {betas}")
        return betas

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        return LionOptimizer(groups, lr, self.betas)


class LionOptimizer(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:2302.06675, with decoupled weight decay."""

    def __init__(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        direction = torch.lerp(grad, momentum, first).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        momentum.lerp_(grad, 1 - second)
