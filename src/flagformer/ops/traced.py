"""Whether a forward computes numbers, or is traced, batched or differentiated by a transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def transformed() -> bool:
    """Whether a transform of `torch.func` is active (`vmap`, `grad`, `jvp`, ...)."""
    return torch._C._are_functorch_transforms_active()


def traced() -> bool:
    """Whether a read of a tensor's numbers would fail, or bind a graph to its example."""
    return torch.compiler.is_compiling() or transformed() or torch.jit.is_tracing() or _faked()


def readable(value: Tensor) -> bool:
    """Whether Python can read the numbers of `value` without waiting for a device or breaking a trace."""
    return value.device.type == "cpu" and not traced() and type(value) in (Tensor, nn.Parameter)


def lasting(value: Tensor) -> bool:
    """Whether a tensor may be kept for a later forward: `value`, an example of those at hand, outlives this
    one. A compiled graph keeps real ones."""
    if torch.compiler.is_compiling():
        return not (torch.compiler.is_exporting() or transformed())
    return not (transformed() or _faked()) and type(value) in (Tensor, nn.Parameter)


def _faked() -> bool:
    """Whether fake tensors or the symbols of `make_fx` are at work."""
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in MODES)
