"""Precision under autocast: regions without casts, and casts for operators that torch does not list."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn

from flagformer.ops.home import home_of


def _kind(device: torch.device) -> str:
    """The device type of autocast; the meta device has none and takes that of the CPU."""
    return "cpu" if device.type == "meta" else device.type


def no_autocast(device: torch.device) -> torch.autocast:
    """A context manager that disables autocast, on any device."""
    return torch.autocast(_kind(device), enabled=False)


def lowered(device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products under autocast; None if autocast is off."""
    kind = _kind(device)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_casts(device: torch.device) -> AbstractContextManager[object]:
    """`no_autocast` if autocast is on, else a null context, which saves 5 us a token."""
    return nullcontext() if lowered(device) is None else no_autocast(device)


def cast_together(*tensors: Tensor) -> list[Tensor]:
    """Cast tensors to one dtype, as autocast does for torch's fused attention: the autocast dtype, or fp64 if
    any tensor is fp64; without autocast the widest dtype among them.

    For operators that autocast does not list, and for calls whose other arguments must not be rounded.
    """
    low, dtypes = lowered(tensors[0].device), {x.dtype for x in tensors}
    if low is None and len(dtypes) == 1:
        return list(tensors)  # without a call of torch, as most forwards
    widest = reduce(torch.promote_types, dtypes)
    dtype = widest if low is None or widest == torch.float64 else low
    return [x.to(dtype) for x in tensors]


def in_full(x: Tensor, module: nn.Module) -> Tensor:
    """x in the precision of a module's parameters under autocast: the output of a projection has half
    precision, and a residual stream in half precision would round every sum."""
    if lowered(x.device) is None:
        return x
    return x.to(torch.promote_types(x.dtype, home_of(module)[1]))


def accum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, biases and sums: fp32, or fp64 for a model in fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
