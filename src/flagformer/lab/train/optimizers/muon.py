"""Muon for matrices, AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from flagformer.lab.train.optimizers import Group, Optimizer


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations, for the matrices of linear layers.

    Embeddings, the head, weights of experts and convolutions, and vectors are updated by AdamW with the same
    `lr` and `train.betas`. The update of a matrix has a root mean square of 0.2, as that of AdamW, so that
    both have one rate (arXiv:2502.16982, section 2.2); `adjust: original` scales it by
    sqrt(max(1, rows / columns)) instead, which is larger for a weight than for its transpose, and needs
    rates of about 0.02.

    A projection that gives queries, keys and values together is orthogonalised as one matrix.
    """

    name: Literal["muon"] = "muon"
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Of the moving average of gradients.")
    nesterov: bool = Field(default=True, description="Nesterov's momentum.")
    ns_steps: int = Field(default=5, ge=1, lt=100, description="Newton-Schulz iterations.")
    adjust: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw", description="Scale of the update by the shape of the matrix."
    )

    title: ClassVar[str] = "Muon for matrices, AdamW for others"
    summary: ClassVar[str] = (
        "Orthogonalised momentum for matrices (Jordan 2024; arXiv:2502.16982), AdamW for the rest; torch's."
    )
    reads_betas: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = False

    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        matrices = [group for group in groups if group.get("orthogonal")]
        others = [group for group in groups if not group.get("orthogonal")]
        made: list[torch.optim.Optimizer] = []
        if matrices:
            made.append(
                torch.optim.Muon(
                    matrices,
                    lr=lr,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    ns_steps=self.ns_steps,
                    adjust_lr_fn=self.adjust,
                )
            )
        if others:
            made.append(torch.optim.AdamW(others, lr=lr, betas=betas, fused=True))
        return Joined(made)


class Joined(torch.optim.Optimizer):
    """Optimizers of different parameters as one, with one state and one list of groups."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let each part use its groups and the common state."""
        first = 0
        for part in self.parts:
            after = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:after], self.state
            first = after

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
