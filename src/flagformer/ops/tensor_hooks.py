"""Tensor hooks during partial backward passes: hooks must run once, on the accumulated gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def suspend_tensor_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Disable the hooks of `tensor.register_hook` inside: `autograd.grad` would call them a first time."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks
