"""AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from flagformer.lab.train.optimizers import Group, Optimizer


class AdamW(Optimizer):
    """torch's AdamW, fused."""

    name: Literal["adamw"] = "adamw"

    title: ClassVar[str] = "AdamW"
    summary: ClassVar[str] = "Adam with decoupled weight decay (arXiv:1711.05101); torch's, fused."
    reads_betas: ClassVar[bool] = True

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
