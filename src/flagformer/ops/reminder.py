"""Reminders for training loops that never apply the statistics that modules gather."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

# Modules whose statistics nothing has applied: the reminder, and the number of steps that left statistics.
WAITING: WeakKeyDictionary[nn.Module, tuple[str, int]] = WeakKeyDictionary()


def watch(module: nn.Module, message: str) -> None:
    """Warn with `message`, once, where an optimizer trains this module and nothing applies its statistics."""
    WAITING[module] = message, 0
    _listen()


def mark_updated(model: nn.Module, message: str) -> None:
    """Forget the modules of this model with this message: their statistics are applied."""
    for module in model.modules():
        if module in WAITING and WAITING[module][0] == message:
            del WAITING[module]


@cache
def _listen() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, *_: Any) -> None:
    """Count a step; at the second one that finds statistics in a module, warn."""
    if not WAITING:
        return
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    late: dict[nn.Module, str] = {}
    for module, (message, steps) in list(WAITING.items()):
        if not any(id(one) in trained for one in module.parameters()):
            continue
        gathered = any(getattr(part, "pending_stats", None) is not None for part in module.modules())
        WAITING[module] = message, steps + 1 if gathered else 0
        if gathered and steps:
            late[module] = message
    for module in late:
        del WAITING[module]
    for message in dict.fromkeys(late.values()):
        warnings.warn(message, stacklevel=4)
