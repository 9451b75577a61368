"""A warning for training loops that never update the centroids of routing attention."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

# Attentions without a call of `update_kmeans` -> optimizer steps since they accumulate statistics.
UNMOVED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
MESSAGE = (
    "the optimizer has made two steps, but the centroids of routing attention have not moved: call "
    "`model.update_kmeans()` after each `optimizer.step()`, or once "
    "`optimizer.register_step_post_hook(lambda *_: model.update_kmeans())`"
)


def watch(attention: nn.Module) -> None:
    """Warn once if an optimizer trains this attention and `update_kmeans` is never called."""
    UNMOVED[attention] = 0
    _listen()


def mark_updated(model: nn.Module) -> None:
    """Disable the warning for a model whose centroids are updated."""
    for module in model.modules():
        UNMOVED.pop(module, None)


@cache
def _listen() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, *_: Any) -> None:
    """Count a step; warn at the second one with statistics that were not used."""
    if not UNMOVED:
        return
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    late = []
    for attention, steps in list(UNMOVED.items()):
        if not any(id(one) in trained for one in attention.parameters()):
            continue
        gathered = any(getattr(module, "pending_stats", None) is not None for module in attention.modules())
        UNMOVED[attention] = steps + 1 if gathered else 0
        if UNMOVED[attention] > 1:
            late.append(attention)
    for attention in late:
        del UNMOVED[attention]
    if late:
        warnings.warn(MESSAGE, stacklevel=4)
