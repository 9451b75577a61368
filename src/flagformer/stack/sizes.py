"""Raises FlagError, before allocation, for models that exceed the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from flagformer.flags import Finding, FlagError
from flagformer.ops.counter import MOST_BYTES, MOST_NUMBERS, Counter, TooLarge, counting, is_counting
from flagformer.ops.memory import GIB, free_on

T = TypeVar("T")
# Models up to this many bytes are built directly; larger ones are first counted on the meta device, which is
# fast compared with their initialisation.
SMALL = 2**28
# Counting stops after so many tensors of a model that does not fit: about a second.
MAX_TENSORS = 20_000


class _Refused(Exception):
    """Wraps a FlagError, so that constructors that collect FlagErrors do not catch it."""

    def __init__(self, error: FlagError) -> None:
        self.error = error


def within_memory(flags: Mapping[str, Any], make: Callable[[], T], again: Callable[[], Any]) -> T:
    """Return `make()` if the result fits into the memory of the device.

    On the meta device and for fake tensors, sizes are limited only by what a tensor can have.

    Args:
        flags: as typed, for the message.
        again: builds a copy; called on the meta device.

    Raises:
        FlagError: for a model that is too large, with the name of the flag that causes it.
    """
    if is_counting():
        return make()
    device = _device()
    free = None if device is None else free_on(device)

    def check() -> None:
        if free is not None:
            _refuse_larger(flags, again, free)

    counter = Counter(False, SMALL, check)
    try:
        with counting(counter):
            return make()
    except _Refused as refused:
        raise refused.error from None
    except TooLarge:
        raise FlagError([_finding(flags, counter, None)]) from None
    except (MemoryError, RuntimeError) as error:
        # on systems that do not report their free memory
        text = str(error).splitlines()[0]
        if not isinstance(error, MemoryError) and not any(word in text for word in ("memory", "overflow")):
            raise
        raise FlagError([_finding(flags, counter, None)]) from error


def _device() -> torch.device | None:
    """Return the device of new parameters; None if they have no storage (meta, fake)."""
    holder = nn.Module()
    holder.register_parameter("probe", nn.Parameter(torch.empty(0)))
    made = holder.probe.data
    return made.device if type(made) is torch.Tensor and made.device.type != "meta" else None


def _refuse_larger(flags: Mapping[str, Any], again: Callable[[], Any], free: int) -> None:
    """Raise _Refused if the model has more than `free` bytes or cannot be built."""

    def stop() -> None:
        counter.bound = counter.bytes
        if counter.tensors > MAX_TENSORS:
            raise TooLarge

    counter = Counter(True, free, stop)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), counting(counter):
            again()
    except TooLarge:
        raise _Refused(FlagError([_finding(flags, counter, free, "at least ")])) from None
    except FlagError as error:  # sizes that cannot be combined
        raise _Refused(error) from None
    if counter.bytes > free or counter.numbers > MOST_NUMBERS:
        raise _Refused(FlagError([_finding(flags, counter, free)]))


def _finding(flags: Mapping[str, Any], counter: Counter, free: int | None, bound: str = "") -> Finding:
    name, value = _cause(flags, counter.largest[1])
    needs = f"it would need {bound}{counter.bytes / GIB:,.1f} GiB"
    if counter.largest[0] > MOST_BYTES:
        shape = " x ".join(map(str, counter.largest[1]))
        needs += f", and a tensor of shape {shape} is too large for torch"
    elif counter.numbers > MOST_NUMBERS:
        needs += f", and {counter.numbers} computed constants, at most {MOST_NUMBERS}"
    has = "" if free is None else f", and {free / GIB:,.1f} GiB are free"
    text = f"`{name}` is {value!r}, and there is not enough memory for a model of these sizes"
    return Finding(name, f"{text}: {needs}{has}; make `{name}` or another size smaller")


def _cause(flags: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[str, Any]:
    """Return the flag whose value makes the longest dimension of the largest tensor; else the largest."""
    longest = max(shape, default=0)
    sizes = sorted(((size, name) for name, value in flags.items() for size in _sizes(value)), reverse=True)
    found = [name for size, name in sizes if longest % size == 0 and size**2 >= longest]
    name = (found or [name for _, name in sizes] or ["dim"])[0]
    return name, flags.get(name)


def _sizes(value: Any) -> Iterator[int]:
    """Yield the sizes in a flag's value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield max(int(value), 1)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _sizes(part)
    elif isinstance(value, Mapping):
        yield from _sizes(list(value.values()))
