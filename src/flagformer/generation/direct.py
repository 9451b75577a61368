"""A model whose modules call each other directly: what a token costs beside its arithmetic.

`nn.Module` looks for hooks at each call, and for each part in three dictionaries: a third of a millisecond a
token in a decoder of six layers, as much as the arithmetic of a narrow one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

CALL = ("__call__", "__getattr__", "_call_impl", "_wrapped_call_impl")  # what a direct call leaves out
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks")


def direct(model: Any) -> Any:
    """The same model for a while: parameters, buffers and every method are the model's own.

    A module that has hooks, its own way to be called, a compiled call or a `forward` of its own instance
    stays itself, with all that is in it. What a forward sets on its module is set on both. What becomes of
    the model's structure later does not reach the view: make one for each generation.
    """
    heard = any(getattr(hooks, name) for name in GLOBAL)
    if heard or torch.compiler.is_compiling() or not isinstance(model, nn.Module):
        return model
    return _view(model, {})


def _view(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """A tied module has one view."""
    if not _is_plain(module):
        return module
    if id(module) not in seen:
        kind: Any = type(module)
        view: nn.Module = object.__new__(_direct_class(kind))
        seen[id(module)] = view
        parts = {name: part if part is None else _view(part, seen) for name, part in module._modules.items()}
        held = {
            name: _view(value, seen) if isinstance(value, nn.Module) else value
            for name, value in module.__dict__.items()
        }
        view.__dict__.update(held, **module._parameters, **module._buffers, **parts)
        view.__dict__.update(_modules=parts, _viewed=module)
    return seen[id(module)]


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing listens to a call of this module, and nothing changes it."""
    kind = type(module)
    if any(getattr(kind, name) is not getattr(nn.Module, name) for name in CALL):
        return False
    if "forward" in module.__dict__ or module._compiled_call_impl is not None:
        return False
    return not any(getattr(module, name) for name in HOOKS)


@cache
def _direct_class(kind: Any) -> Any:
    """The class of modules, called by its `forward`."""

    def set_both(view: Any, name: str, value: Any) -> None:
        setattr(view._viewed, name, value)
        view.__dict__[name] = value

    body = {"__call__": kind.forward, "__setattr__": set_both, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)
