"""Models that do not fit into memory are refused before they are made, by the flag that makes them large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from flagformer.flags import Finding, FlagError
from flagformer.ops.counter import MOST_BYTES, MOST_NUMBERS, Counter, TooLarge, counting, is_counting
from flagformer.ops.memory import GIB, free_on

T = TypeVar("T")
# Bytes up to which a model is made at once; a larger one is first counted on the meta device, which takes
# little of the time that its initialisation takes.
SMALL = 2**28
# Tensors of a model that is known not to fit, after which its rest is not counted: about a second.
MOST_TENSORS = 20_000


class _Refused(Exception):
    """Carries a FlagError through constructors that gather those of their parts."""

    def __init__(self, error: FlagError) -> None:
        self.error = error


def within_memory(flags: Mapping[str, Any], make: Callable[[], T], again: Callable[[], Any]) -> T:
    """What `make` makes, if the memory of the device suffices for it.

    On the meta device, and for fake tensors, any size is made that a tensor can have.

    Args:
        flags: as typed, for the message.
        again: makes the same once more; called on the meta device.

    Raises:
        FlagError: naming the flag that makes the model too large.
    """
    if is_counting():
        return make()
    home = _home()
    free = None if home is None else free_on(home)

    def look() -> None:
        if free is not None:
            _refuse_larger(flags, again, free)

    counter = Counter(False, SMALL, look)
    try:
        with counting(counter):
            return make()
    except _Refused as refused:
        raise refused.error from None
    except TooLarge:
        raise FlagError([_finding(flags, counter, None)]) from None
    except (MemoryError, RuntimeError) as error:
        # where the system does not say what is free
        text = str(error).splitlines()[0]
        if not isinstance(error, MemoryError) and not any(word in text for word in ("memory", "overflow")):
            raise
        raise FlagError([_finding(flags, counter, None)]) from error


def _home() -> torch.device | None:
    """The device where parameters are made now; None where they hold no numbers (meta, fake)."""
    holder = nn.Module()
    holder.register_parameter("probe", nn.Parameter(torch.empty(0)))
    made = holder.probe.data
    return made.device if type(made) is torch.Tensor and made.device.type != "meta" else None


def _refuse_larger(flags: Mapping[str, Any], again: Callable[[], Any], free: int) -> None:
    """_Refused if what `again` makes has more than `free` bytes, or cannot be made."""

    def stop() -> None:
        counter.bound = counter.bytes
        if counter.tensors > MOST_TENSORS:
            raise TooLarge

    counter = Counter(True, free, stop)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), counting(counter):
            again()
    except TooLarge:
        raise _Refused(FlagError([_finding(flags, counter, free, "at least ")])) from None
    except FlagError as error:  # of sizes that do not go together
        raise _Refused(error) from None
    if counter.bytes > free or counter.numbers > MOST_NUMBERS:
        raise _Refused(FlagError([_finding(flags, counter, free)]))


def _finding(flags: Mapping[str, Any], counter: Counter, free: int | None, least: str = "") -> Finding:
    name, value = _cause(flags, counter.largest[1])
    needs = f"it would need {least}{counter.bytes / GIB:,.1f} GiB"
    if counter.largest[0] > MOST_BYTES:
        shape = " x ".join(map(str, counter.largest[1]))
        needs += f", and no tensor can have the shape {shape}"
    elif counter.numbers > MOST_NUMBERS:
        needs += f", and compute {counter.numbers} numbers one by one, at most {MOST_NUMBERS}"
    has = "" if free is None else f", and {free / GIB:,.1f} GiB are free"
    text = f"`{name}` is {value!r}, and there is no memory for a model of these sizes"
    return Finding(name, f"{text}: {needs}{has}; make `{name}` or another size smaller")


def _cause(flags: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[str, Any]:
    """The flag with the largest size that makes up most of the largest tensor's longest side; or with the
    largest of all."""
    side = max(shape, default=0)
    sizes = sorted(((size, name) for name, value in flags.items() for size in _sizes(value)), reverse=True)
    found = [name for size, name in sizes if side % size == 0 and size**2 >= side]
    name = (found or [name for _, name in sizes] or ["dim"])[0]
    return name, flags.get(name)


def _sizes(value: Any) -> Iterator[int]:
    """The sizes in a flag's value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield max(int(value), 1)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _sizes(part)
    elif isinstance(value, Mapping):
        yield from _sizes(list(value.values()))
