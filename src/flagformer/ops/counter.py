"""Counts of the tensors and Python numbers that constructors are about to allocate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# torch stores the bytes of a tensor in a signed 64-bit integer
MOST_BYTES = 2**63 - 1
# numbers of formulas (slopes, frequencies) of one model: about two seconds of Python
MOST_NUMBERS = 2**22
NUMBER = 32  # bytes of a float in a tuple: 24, and 8 for the reference
FILLS = {nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_}
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

_open: ContextVar[Counter | None] = ContextVar("counter", default=None)


class TooLarge(Exception):
    """Counting ended early: the rest cannot be allocated."""


class Counter(TorchFunctionMode):
    """Counts tensors and numbers inside a `with` block, before they are allocated.

    Args:
        dry: numbers are counted and not computed; tensors are on the meta device.
        bound: bytes above which `passed` is called.
        passed: called once, before the tensor that exceeds `bound` is allocated.

    Attributes:
        bytes: of tensors and numbers so far.
        tensors: their number so far.
        numbers: their count so far.
        largest: bytes and shape of the largest tensor.
    """

    def __init__(self, dry: bool, bound: float = math.inf, passed: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.dry, self.bound, self.passed = dry, bound, passed
        self.bytes = self.tensors = self.numbers = 0
        self.largest: tuple[int, tuple[int, ...]] = (0, ())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # also on the meta device: `to_empty` allocates them later
        if func in FACTORIES:
            self.tensors += 1
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self._add(_shape(kwargs.get("size", args)), dtype.itemsize)
        elif func in FILLS and kwargs["tensor"].is_meta:
            return kwargs["tensor"]  # half of the time of a model without storage
        return func(*args, **kwargs)

    def add_numbers(self, count: int) -> None:
        self.numbers += count
        self._add((count,), NUMBER)
        if not self.dry and self.numbers > MOST_NUMBERS:
            raise TooLarge

    def _add(self, shape: tuple[int, ...], size: int) -> None:
        size *= math.prod(shape)
        self.bytes += size
        self.largest = max(self.largest, (size, shape))
        if size > MOST_BYTES:
            raise TooLarge
        if self.bytes > self.bound and self.passed is not None:
            self.bound = math.inf
            self.passed()


def _shape(args: Any) -> tuple[int, ...]:
    """The sizes in a factory's arguments: `(2, 3)` or `((2, 3), ...)`."""
    if args and isinstance(args[0], (tuple, list)):
        args = args[0]
    return tuple(size for size in args if isinstance(size, int))


@contextmanager
def counting(counter: Counter) -> Iterator[Counter]:
    """Count all allocations inside the `with` block."""
    token = _open.set(counter)
    try:
        with counter:
            yield counter
    finally:
        _open.reset(token)


def is_counting() -> bool:
    return _open.get() is not None


def counted(numbers: Iterable[float], count: int) -> tuple[float, ...]:
    """The `count` numbers of a formula as a tuple, counted before they are computed; empty in a dry run."""
    counter = _open.get()
    if counter is not None:
        counter.add_numbers(count)
        if counter.dry:
            return ()
    return tuple(numbers)
