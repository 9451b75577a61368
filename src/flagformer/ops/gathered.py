"""Parts of a sharded model that are used outside its forward, where FSDP2 gathers nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def gathered(*parts: nn.Module) -> Iterator[None]:
    """Inside, sharded parameters (DTensors) of the parts are whole, without gradient.

    Every rank must enter: each parameter is gathered from all of them. Modules that FSDP2 wraps apart gather
    themselves when they are called, so they are left alone unless they are one of `parts`.
    """
    held = [
        (module, name, parameter)
        for part in parts
        for module in _unwrapped(part)
        for name, parameter in module._parameters.items()
        if hasattr(parameter, "full_tensor")
    ]
    try:
        for module, name, parameter in held:
            module._parameters[name] = nn.Parameter(parameter.full_tensor(), requires_grad=False)  # type: ignore
        yield
    finally:
        for module, name, parameter in held:
            module._parameters[name] = parameter


def _unwrapped(part: nn.Module) -> Iterator[nn.Module]:
    yield part
    for child in part.children():
        if not hasattr(child, "unshard"):
            yield from _unwrapped(child)
