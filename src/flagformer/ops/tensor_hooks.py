"""Gradients that are handed on are no gradients yet: hooks wait for the sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def suspend_tensor_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """`tensor.register_hook` is silent inside: `autograd.grad` would call what autograd calls later again."""
    held = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    for tensor, _ in held:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in held:
            tensor._backward_hooks = hooks
