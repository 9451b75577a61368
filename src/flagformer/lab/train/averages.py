"""The weights that are evaluated and saved, where they are averages of those that are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

EMA = "ema"  # the name of the average in the state of an optimizer, so that checkpoints have it


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Move the exponential average of each trained parameter towards it; it begins at the first update."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:  # a parameter without a gradient so far has its first value
                continue
            if EMA in state:
                state[EMA].lerp_(parameter, 1 - decay)
            else:
                state[EMA] = parameter.detach().clone()


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The parameters are the averages of `ema` or of a schedule-free optimizer; the trained ones return bit
    by bit.
    """
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    averages = {p: state[EMA] for p, state in optimizer.state.items() if EMA in state}
    schedule_free: Any = optimizer if hasattr(optimizer, "eval") else None
    if not averages and schedule_free is None:
        yield
        return
    with torch.no_grad():
        kept = [p.detach().clone() for p in parameters]
        if schedule_free is not None:
            schedule_free.eval()
        for p, average in averages.items():
            p.copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            if schedule_free is not None:
                schedule_free.train()
            for p, value in zip(parameters, kept):
                p.copy_(value)
