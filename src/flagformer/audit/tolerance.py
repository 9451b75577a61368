"""Tolerances for results that should be equal, and the reasons for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOOSEST = 0.1


@dataclass(frozen=True)
class Tolerance:
    """`value` is relative to the largest logit."""

    value: float
    reason: str


def same_shape(dtype: torch.dtype) -> Tolerance:
    """The tolerance of runs with the same shapes, which differ only by the order of a kernel's sums."""
    reason = f"8 rounding errors of {_short(dtype)}: the same shapes are summed in the same order"
    return Tolerance(min(8 * torch.finfo(dtype).eps, LOOSEST), reason)


def other_shape(dtype: torch.dtype) -> Tolerance:
    """The tolerance of runs with different shapes, for which kernels sum in different orders.

    Correct models of 2 and of 24 layers, trained and untrained, differed by up to 8 rounding errors.
    """
    reason = f"100 rounding errors of {_short(dtype)}: other shapes, another order of sums"
    return Tolerance(min(100 * torch.finfo(dtype).eps, LOOSEST), reason)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
