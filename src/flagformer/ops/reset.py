"""Initialisation of a built model, again: every module's `reset_parameters`, in the order of construction."""

from __future__ import annotations

from itertools import chain

from torch import nn


def reset(module: nn.Module) -> None:
    """Calls `reset_parameters` of `module` and of what it contains, children first, as constructors do.

    A module that has the method and no tensor of its own initialises its children by it.
    """
    own = getattr(module, "reset_parameters", None)
    if own is None or _has_tensors(module):
        for child in module.children():
            reset(child)
    if own is not None:
        own()


def _has_tensors(module: nn.Module) -> bool:
    tensors = chain(module._parameters.values(), module._buffers.values())
    return any(tensor is not None for tensor in tensors)


def refuse_unknown(model: nn.Module) -> None:
    """TypeError for a module inside that cannot be initialised again."""
    for name, module in model.named_modules():
        if _has_tensors(module) and not hasattr(module, "reset_parameters"):
            raise TypeError(
                f"`{name}` must have a method `reset_parameters`, as it has tensors of its own, but a "
                f"{type(module).__name__} has none; give its class one, as `nn.Linear` has"
            )
