"""Formatting of numbers and lists for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from flagformer.lab.study.design import flat
from flagformer.lab.study.statistics import Difference, Estimate

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def count(value: int | None) -> str:
    """428,032"""
    return NOTHING if value is None else f"{value:,}"


def short(value: float | None) -> str:
    """428 k, 1.23 M, 12.3 G: three digits."""
    if value is None:
        return NOTHING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return (
                f"{value / size:.3g} {letter}"
                if abs(value) < 999.5 * size
                else f"{value / size:.0f} {letter}"
            )
    return f"{value:.3g}"


def size(value: int | None) -> str:
    """12.3 MiB: three digits and a unit of 1024."""
    if value is None:
        return NOTHING
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1000:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"


def estimate(value: Estimate, digits: int = 3) -> str:
    """`1.702 ± 0.012`: the mean and half its 95 % interval."""
    if value.mean is None:
        return NOTHING
    mean = f"{value.mean:.{digits}f}"
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.{digits}f}"


def difference(value: Difference | None, digits: int = 3) -> str:
    """`-0.251 ± 0.040`, with a sign; `-0.031 [-0.060, 0.000]` if the interval is not symmetric."""
    if value is None or value.estimate.mean is None:
        return NOTHING
    found = value.estimate
    mean = f"{found.mean:+z.{digits}f}".replace("-", MINUS)
    if found.low is None or found.high is None or found.half_width is None:
        return mean
    if abs(found.low + found.high - 2 * (found.mean or 0.0)) > 1e-9 * (found.high - found.low):
        return f"{mean} {interval((found.low, found.high), digits)}"
    return f"{mean} ± {found.half_width:.{digits}f}"


def interval(ends: tuple[float, float], digits: int = 3) -> str:
    """`[-0.060, 0.000]`"""
    return f"[{ends[0]:z.{digits}f}, {ends[1]:z.{digits}f}]".replace("-", MINUS)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def flags_text(flags: dict) -> str:
    """The changes of a variant on one line."""
    return ", ".join(f"{key}={value}" for key, value in flat(flags).items()) or "(the base, unchanged)"


def plural(number: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
