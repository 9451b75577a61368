"""What the last weights of each sublayer start at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flagformer.flags import Need, component


class Start(ABC):
    """Contract of the slot `start`: called once, with the sublayers that are built."""

    @abstractmethod
    def __call__(self, sublayers: Sequence[Any]) -> None: ...


@component("start")
class Usual(Start):
    """Every module's own start."""

    def __call__(self, sublayers: Sequence[Any]) -> None:
        pass


@component(
    "start",
    select="zero_init_branch_output",
    paper="arXiv:1901.09321",
    requires=[Need("sandwich_norm", None, "a norm of zeros has no direction, and its gradient no bound")],
)
class ZeroBranches(Start):
    """Sublayers start by adding nothing: their last projection is zero."""

    @torch.no_grad()
    def __call__(self, sublayers: Sequence[Any]) -> None:
        for sublayer in sublayers:
            last = _last(sublayer)
            last.weight.zero_()
            if last.bias is not None:
                last.bias.zero_()


@component("start", select="depth_scale_residual", paper="arXiv:2203.00555, section 3")
class DepthScaled(Start):
    """The i-th sublayer's last projection starts with the standard deviation (i * its inputs) ** -0.5.

    The sum of all sublayers then grows with the logarithm of their number, as in the start of OLMo.
    """

    @torch.no_grad()
    def __call__(self, sublayers: Sequence[Any]) -> None:
        for index, sublayer in enumerate(sublayers, start=1):
            last = _last(sublayer)
            last.weight.normal_(std=(last.in_features * index) ** -0.5)


def _last(sublayer: Any) -> nn.Linear:
    return sublayer.fn.outer if sublayer.kind == "f" else sublayer.fn.to_out
