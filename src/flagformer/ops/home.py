"""The device and dtype of a module."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn


def home_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a module's first floating-point parameter.

    Quantised layers may have no such parameter: then those of the first floating-point buffer, such as a
    scale, and without one torch's defaults.
    """
    tensors = chain(module.parameters(), module.buffers())
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return (
        (torch.get_default_device(), torch.get_default_dtype())
        if first is None
        else (first.device, first.dtype)
    )
