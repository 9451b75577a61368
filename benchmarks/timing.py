"""Interleaved timing: every contender once per round, so that a slow minute affects all of them."""

import gc
import statistics
import time
from collections.abc import Callable

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def once(work: Callable[[], object], clock: str) -> float:
    """Seconds of one call, with the garbage collector disabled as in `timeit`."""
    now = CLOCKS[clock]
    gc.collect()
    gc.disable()
    try:
        start = now()
        work()
        return now() - start
    finally:
        gc.enable()


def interleave(works: dict[str, Callable[[], object]], rounds: int, clock: str) -> dict[str, list[float]]:
    """`rounds` samples in seconds for each name; the order rotates by one each round."""
    names = list(works)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(once(works[name], clock))
    return samples


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours / theirs: load of the machine in the same round cancels."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
