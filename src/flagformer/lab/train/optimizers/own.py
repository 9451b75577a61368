"""Optimizers by import path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, field_validator

from flagformer.lab.imports import imported, raised_by
from flagformer.lab.train.optimizers import Group, Optimizer


class Own(Optimizer):
    """A class of torch's optimizers: `{name: "mylab.optim:Sophia", rho: 0.05}`. Other keys are its arguments.

    It receives parameter groups, each with `weight_decay`, and `lr`.
    """

    model_config = ConfigDict(extra="allow")
    name: str

    title: ClassVar[str] = "An own optimizer"
    summary: ClassVar[str] = "Your own `torch.optim.Optimizer`."
    is_elementwise: ClassVar[bool] = False

    @field_validator("name")
    @classmethod
    def _is_an_optimizer(cls, path: str) -> str:
        imported(path, "optimizer", torch.optim.Optimizer)
        return path

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        found = imported(self.name, "optimizer", torch.optim.Optimizer)
        arguments: dict[str, Any] = dict(self.model_extra or {})
        made: torch.optim.Optimizer = self._named(found, partial(found, groups, lr=lr, **arguments))
        made.step = partial(self._named, found, made.step)  # type: ignore[method-assign]
        return made

    def _named(self, found: type, call: Callable[[], Any]) -> Any:
        """Return `call()`, whose errors name the class with its file and line."""
        try:
            return call()
        except Exception as error:  # the user's code may raise anything
            raise ValueError(f"`optimizer` is {self.name}{raised_by(error, found)}") from error
