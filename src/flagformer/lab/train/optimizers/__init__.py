"""Optimizers: each is its own configuration, with the keys of the `optimizer` block of `train`.

To add one, write one file with a subclass of `Optimizer`, one line in `catalogue.py` and one test.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from flagformer.lab.train.block import Block

# The parameters of an optimizer, with `weight_decay`, and `orthogonal: True` for those of Muon.
Group = dict[str, Any]


class Optimizer(Block):
    """An optimizer of training.

    Attributes:
        name: in files; of an own class its import path.
        title: its name in reports.
        summary: one sentence for the documentation, with the source.
        reads_betas: whether `train.betas` are its decay rates.
        decays_rate: whether the learning rate follows `train.decay` after the warmup.
        is_elementwise: whether the update of an element depends on no other one, so that parameters may be
            sharded over ranks.
        factored: names of its state that have another shape than their parameter.
    """

    title: ClassVar[str]
    summary: ClassVar[str]
    name: str
    reads_betas: ClassVar[bool] = False
    decays_rate: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True
    factored: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make(self, groups: Sequence[Group], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        """Return the optimizer of these groups."""
