"""Schedule-free AdamW (arXiv:2405.15682)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from flagformer.lab.train.optimizers import Group, Optimizer


class ScheduleFree(Optimizer):
    """The package schedulefree: gradients are taken between the iterate and an average of all iterates.

    The rate stays at `lr` after the warmup. Evaluations and the saved model have the average.
    """

    name: Literal["schedulefree"] = "schedulefree"
    weight_power: float = Field(default=2.0, ge=0, description="Power of the rate that weights an iterate.")

    title: ClassVar[str] = "Schedule-free AdamW"
    summary: ClassVar[str] = "AdamW with an average of iterates in place of a schedule (arXiv:2405.15682)."
    reads_betas: ClassVar[bool] = True
    decays_rate: ClassVar[bool] = False

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        try:
            from schedulefree import AdamWScheduleFree
        except ImportError as error:
            raise ValueError(
                "`optimizer: schedulefree` needs the package schedulefree: "
                "pip install 'flagformer[optimizers]'"
            ) from error
        made: torch.optim.Optimizer = AdamWScheduleFree(
            groups, lr=lr, betas=betas, weight_lr_power=self.weight_power
        )
        made.train()  # type: ignore[attr-defined]
        return made
