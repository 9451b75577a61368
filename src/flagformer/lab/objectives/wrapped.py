"""Access to a model inside DistributedDataParallel."""

from typing import Any

from torch import nn


def inner(model: nn.Module) -> Any:
    """The model without its DistributedDataParallel wrapper."""
    wrapped = getattr(model, "module", None)
    return wrapped if isinstance(wrapped, nn.Module) else model
