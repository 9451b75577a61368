"""Whether a forward runs eagerly, or is traced or transformed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def transformed() -> bool:
    """Whether a transform of `torch.func` is active (`vmap`, `grad`, `jvp`, ...)."""
    return torch._C._are_functorch_transforms_active()


def traced() -> bool:
    """Whether reading a tensor's values would fail, or specialise a graph to its example."""
    return torch.compiler.is_compiling() or transformed() or torch.jit.is_tracing() or _faked()


def readable(value: Tensor) -> bool:
    """Whether Python can read the values of `value` without a device synchronisation or a graph break."""
    return value.device.type == "cpu" and not traced() and type(value) in (Tensor, nn.Parameter)


def cacheable(value: Tensor) -> bool:
    """Whether tensors of this forward, such as `value`, may be cached for a later one. In a compiled graph
    they may."""
    if torch.compiler.is_compiling():
        return not (torch.compiler.is_exporting() or transformed())
    return not (transformed() or _faked()) and type(value) in (Tensor, nn.Parameter)


def _faked() -> bool:
    """Whether fake tensors or `make_fx` are active."""
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in MODES)
