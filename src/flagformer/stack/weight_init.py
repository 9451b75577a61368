"""Initial weights of the output projection of each sublayer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from flagformer.flags import Finding, FlagError, component
from flagformer.ops.linear import Init, Linear

WORDS = {"a": "self-attention", "c": "cross-attention", "f": "feedforward", "m": "mixer"}
ZEROS = {"zero_output"}
LAST = {"output_projection"}  # of a feedforward; attention has one


class WeightInit(ABC):
    """Contract of the slot `init`: called once with the built sublayers, in the order of the catalogue.

    Attributes:
        kinds: the kinds of sublayers that it changes.
    """

    kinds = frozenset("acfm")

    @abstractmethod
    def __call__(self, sublayers: Sequence[Any]) -> None: ...


def apply_init(inits: Sequence[Any], sublayers: Sequence[Any]) -> None:
    """Apply each init; raise FlagError for one without effect."""
    present = {sublayer.kind for sublayer in sublayers}
    for index, init in enumerate(inits):
        if isinstance(init, WeightInit):
            _refuse_unused(init, inits[index + 1 :], present)
        init(sublayers)


def _refuse_unused(init: WeightInit, others: Sequence[Any], present: set[str]) -> None:
    later = [other for other in others if isinstance(other, WeightInit) and other.kinds & init.kinds]
    if (init.kinds & present).difference(*(other.kinds for other in later)):
        return
    kinds = " or ".join(WORDS[kind] for kind in sorted(init.kinds))
    names = " and ".join(f"`{_flag(other)}`" for other in later)
    why = f"{names} overwrites all its weights" if later else f"this model has no {kinds} sublayer"
    why += " (`mixer`)" if "m" in present and not later else ""
    text = f"`{_flag(init)}` has no effect here, because {why}; leave it out"
    raise FlagError([Finding(_flag(init), text)])


def _flag(init: WeightInit) -> str:
    declared = getattr(init, "component", None)
    return "init" if declared is None else str(declared.say())


def undo(inits: Sequence[Any], sublayers: Sequence[Any]) -> None:
    """Restore torch's initialisation of output projections, until `apply_init` is called."""
    for init in (init for init in inits if isinstance(init, WeightInit)):
        for last in (_last(init, sublayer) for sublayer in sublayers if sublayer.kind in init.kinds):
            if isinstance(last, Linear):
                last.init = None


def _initialise(last: nn.Linear, init: Init) -> None:
    """Initialise a projection now and at each later reset."""
    if isinstance(last, Linear):
        last.init = init
    with torch.no_grad():
        init(last)


@component("init", select="depth_scale_residual", paper="arXiv:2203.00555, section 3", needs=LAST)
class DepthScaledInit(WeightInit):
    """Initialise the output projection of sublayer i with standard deviation (i * in_features) ** -0.5.

    The sum of all sublayers then grows with the logarithm of their number, as in OLMo.
    """

    def __call__(self, sublayers: Sequence[Any]) -> None:
        for index, sublayer in enumerate(sublayers, start=1):
            _initialise(_last(self, sublayer), partial(_scaled, index=index))


class _Zeros(WeightInit):
    """Set the output projections of some kinds of sublayers to zero."""

    def __call__(self, sublayers: Sequence[Any]) -> None:
        for sublayer in (sublayer for sublayer in sublayers if sublayer.kind in self.kinds):
            _initialise(_last(self, sublayer), _zeroed)


@component("init", select="ff_zero_init_output", paper="arXiv:1901.09321", needs=ZEROS | LAST)
class ZeroFeedForwardInit(_Zeros):
    """Set the output projections of feedforwards to zero."""

    kinds = frozenset("f")


@component("init", select="cross_attn_zero_init_output", paper="arXiv:1901.09321", needs=ZEROS, kind="c")
class ZeroCrossAttentionInit(_Zeros):
    """Set the output projections of cross-attention to zero, to add a context to a trained model."""

    kinds = frozenset("c")


@component("init", select="attn_zero_init_output", paper="arXiv:1901.09321", needs=ZEROS)
class ZeroAttentionInit(_Zeros):
    """Set the output projections of self- and cross-attention to zero."""

    kinds = frozenset("ac")


@component("init", select="zero_init_branch_output", paper="arXiv:1901.09321", needs=ZEROS | LAST)
class ZeroBranchesInit(_Zeros):
    """Set the output projections of all sublayers to zero, so that they initially add nothing."""


def _scaled(last: nn.Linear, index: int) -> None:
    nn.init.normal_(last.weight, std=(last.in_features * index) ** -0.5)


def _zeroed(last: nn.Linear) -> None:
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def _last(init: WeightInit, sublayer: Any) -> nn.Linear:
    """Return the output projection of a sublayer."""
    if sublayer.kind in ("a", "c"):
        return sublayer.fn.to_out.last
    last = getattr(sublayer.fn, "w_out", None)
    if last is None:
        name = f"`{_flag(init)}`"
        text = (
            f"{name} and `feedforward` cannot be combined here, because {type(sublayer.fn).__name__} has no"
        )
        text = f"{text} attribute `w_out`, the output projection; add it, or leave {name} out"
        raise FlagError([Finding(_flag(init), text)])
    return last
