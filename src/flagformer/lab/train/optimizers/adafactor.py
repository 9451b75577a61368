"""Adafactor (arXiv:1804.04235)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from flagformer.lab.train.optimizers import Group, Optimizer


class Adafactor(Optimizer):
    """torch's Adafactor: second moments as products of rows and columns, without momentum.

    An update is scaled by the root mean square of its parameter, and the rate is at most 1 / sqrt(step).
    """

    name: Literal["adafactor"] = "adafactor"
    beta2_decay: float = Field(default=-0.8, lt=0, description="Exponent of the decay of second moments.")
    threshold: float = Field(default=1.0, gt=0, description="Largest root mean square of an update.")

    title: ClassVar[str] = "Adafactor"
    summary: ClassVar[str] = "Factored second moments, updates relative to their weights (arXiv:1804.04235)."
    is_elementwise: ClassVar[bool] = False
    factored: ClassVar[tuple[str, ...]] = ("row_var", "col_var")

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(groups, lr=lr, beta2_decay=self.beta2_decay, d=self.threshold)
