"""Where a module is and what it computes in."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn


def home_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of a module: those of its first floating-point parameter.

    Quantised layers may hold integers alone, or buffers alone: then those of its first floating-point buffer,
    such as a scale, and without one torch's defaults.
    """
    tensors = chain(module.parameters(), module.buffers())
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return (
        (torch.get_default_device(), torch.get_default_dtype())
        if first is None
        else (first.device, first.dtype)
    )
