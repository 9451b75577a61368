"""What the last weights of each sublayer start at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from flagformer.flags import Finding, FlagError, Requirement, component
from flagformer.ops.linear import Init, Linear

WORDS = {"a": "self-attention", "c": "cross-attention", "f": "feedforward"}
SANDWICH = Requirement("sandwich_norm", None, "a norm of zeros has no direction, and its gradient no bound")
WHOLE = Requirement("zero_init_branch_output", None, "it starts every last projection at zero already")


class WeightInit(ABC):
    """Contract of the slot `start`: called once, with the sublayers that are built, in the catalogue's order.

    Attributes:
        kinds: the kinds of sublayers that it changes.
    """

    kinds = frozenset("acf")

    @abstractmethod
    def __call__(self, sublayers: Sequence[Any]) -> None: ...


def apply_init(starts: Sequence[Any], sublayers: Sequence[Any]) -> None:
    """Applies them; one that changes nothing, or nothing that stays, is refused."""
    present = {sublayer.kind for sublayer in sublayers}
    for index, start in enumerate(starts):
        if isinstance(start, WeightInit):
            _refuse_idle(start, starts[index + 1 :], present)
        start(sublayers)


def _refuse_idle(start: WeightInit, behind: Sequence[Any], present: set[str]) -> None:
    later = [other for other in behind if isinstance(other, WeightInit) and other.kinds & start.kinds]
    if (start.kinds & present).difference(*(other.kinds for other in later)):
        return
    kinds = " or ".join(WORDS[kind] for kind in sorted(start.kinds))
    others = " and ".join(f"`{_say(other)}`" for other in later)
    why = f"{others} set all that it sets" if later else f"this model has no {kinds} sublayer"
    text = f"`{_say(start)}` has no effect here, because {why}; leave it out"
    raise FlagError([Finding(_say(start), text)])


def _say(start: WeightInit) -> str:
    declared = getattr(start, "component", None)
    return "init" if declared is None else str(declared.say())


def undo(starts: Sequence[Any], sublayers: Sequence[Any]) -> None:
    """Last projections start as torch's do, until `begin` is called."""
    for start in (start for start in starts if isinstance(start, WeightInit)):
        for last in (_last(start, sublayer) for sublayer in sublayers if sublayer.kind in start.kinds):
            if isinstance(last, Linear):
                last.init = None


def _begin_at(last: nn.Linear, init: Init) -> None:
    """Now, and whenever it is reset."""
    if isinstance(last, Linear):
        last.init = init
    with torch.no_grad():
        init(last)


@component("init", select="depth_scale_residual", paper="arXiv:2203.00555, section 3")
class DepthScaledInit(WeightInit):
    """The i-th sublayer's last projection starts with the standard deviation (i * its inputs) ** -0.5.

    The sum of all sublayers then grows with the logarithm of their number, as in the start of OLMo.
    """

    def __call__(self, sublayers: Sequence[Any]) -> None:
        for index, sublayer in enumerate(sublayers, start=1):
            _begin_at(_last(self, sublayer), partial(_scaled, index=index))


class _Zeros(WeightInit):
    """The last projection of some kinds of sublayers is zero."""

    def __call__(self, sublayers: Sequence[Any]) -> None:
        for sublayer in (sublayer for sublayer in sublayers if sublayer.kind in self.kinds):
            _begin_at(_last(self, sublayer), _zeroed)


@component(
    "init",
    select="zero_init_branch_output",
    paper="arXiv:1901.09321",
    requires=[SANDWICH, Requirement("depth_scale_residual", None, "zeros have no scale")],
)
class ZeroBranchesInit(_Zeros):
    """Sublayers start by adding nothing: their last projection is zero."""


@component("init", select="attn_zero_init_output", paper="arXiv:1901.09321", requires=[SANDWICH, WHOLE])
class ZeroAttentionInit(_Zeros):
    """Self- and cross-attention start by adding nothing."""

    kinds = frozenset("ac")


@component(
    "init",
    select="cross_attn_zero_init_output",
    paper="arXiv:1901.09321",
    requires=[
        SANDWICH,
        WHOLE,
        Requirement("attn_zero_init_output", None, "it starts cross-attention at zero too"),
    ],
    kind="c",
)
class ZeroCrossAttentionInit(_Zeros):
    """Cross-attention starts by adding nothing, so that a context can be brought to a trained model."""

    kinds = frozenset("c")


@component("init", select="ff_zero_init_output", paper="arXiv:1901.09321", requires=[SANDWICH, WHOLE])
class ZeroFeedForwardInit(_Zeros):
    """Feedforwards start by adding nothing."""

    kinds = frozenset("f")


def _scaled(last: nn.Linear, index: int) -> None:
    nn.init.normal_(last.weight, std=(last.in_features * index) ** -0.5)


def _zeroed(last: nn.Linear) -> None:
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def _last(start: WeightInit, sublayer: Any) -> nn.Linear:
    """The projection that decides what a sublayer adds at first."""
    if sublayer.kind != "f":
        return sublayer.fn.to_out.last
    last = getattr(sublayer.fn, "w_out", None)
    if last is None:
        text = f"`{_say(start)}` and `feedforward` cannot be combined here, because a feedforward of type"
        text = f"{text} {type(sublayer.fn).__name__} has no attribute outer, the last nn.Linear that it sets"
        raise FlagError([Finding(_say(start), f"{text}; add it, or leave the flag out")])
    return last
