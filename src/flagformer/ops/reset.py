"""Reinitialisation of a built model: every module's `reset_parameters`, in the order of construction."""

from __future__ import annotations

from itertools import chain

from torch import nn


def reset(module: nn.Module) -> None:
    """Call `reset_parameters` of `module` and its descendants, children first, in the order of constructors.

    A module that has the method and no tensors of its own initialises its children itself.
    """
    reset_parameters = getattr(module, "reset_parameters", None)
    if reset_parameters is None or _has_tensors(module):
        for child in module.children():
            reset(child)
    if reset_parameters is not None:
        reset_parameters()


def _has_tensors(module: nn.Module) -> bool:
    tensors = chain(module._parameters.values(), module._buffers.values())
    return any(tensor is not None for tensor in tensors)


def refuse_unknown(model: nn.Module) -> None:
    """Raise TypeError for a submodule that has tensors and no `reset_parameters`."""
    for name, module in model.named_modules():
        if _has_tensors(module) and not hasattr(module, "reset_parameters"):
            raise TypeError(
                f"`{name}` must have a method `reset_parameters`, as it has tensors of its own, but a "
                f"{type(module).__name__} has none; give its class one, as `nn.Linear` has"
            )
