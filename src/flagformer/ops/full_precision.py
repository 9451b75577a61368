"""Arithmetic under autocast: what it must leave alone, and what torch's own list does not cover."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn

from flagformer.ops.home import home_of


def _kind(device: torch.device) -> str:
    """The meta device knows no autocast of its own."""
    return "cpu" if device.type == "meta" else device.type


def no_autocast(device: torch.device) -> torch.autocast:
    """A context without casts, on any device."""
    return torch.autocast(_kind(device), enabled=False)


def lowered(device: torch.device) -> torch.dtype | None:
    """The dtype of products under autocast; None where it is off."""
    kind = _kind(device)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_casts(device: torch.device) -> AbstractContextManager[object]:
    """`no_autocast` where autocast is on, and nothing where it is off: a token saves 5 us."""
    return nullcontext() if lowered(device) is None else no_autocast(device)


def cast_together(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one dtype, as torch's fused attention gets them under autocast: its dtype, or fp64 where
    any is fp64; without autocast the widest of theirs.

    For operators that autocast does not know, and for calls whose other arguments it must not round.
    """
    widest = reduce(torch.promote_types, (x.dtype for x in tensors))
    low = lowered(tensors[0].device)
    dtype = widest if low is None or widest == torch.float64 else low
    return [x.to(dtype) for x in tensors]


def in_full(x: Tensor, module: nn.Module) -> Tensor:
    """Under autocast x in the precision of a module's parameters: a projection in front of it gives half of
    that, and a stream in half precision would round every sum."""
    if lowered(x.device) is None:
        return x
    return x.to(torch.promote_types(x.dtype, home_of(module)[1]))


def accum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What scores, biases and sums are kept in: fp32, or fp64 of a model in fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
