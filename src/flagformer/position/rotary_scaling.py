"""Scaled rotary frequencies for longer texts: `rotary_scaling`, with the numbers of Hugging Face configs.

Each rule is a function (R, base, numbers) -> (the R / 2 rates of the pairs, the factor of cos and sin).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flagformer.flags import Finding, FlagError

FLAG = "rotary_scaling"
Scaled = tuple[Iterable[float], float]


class _Rule(NamedTuple):
    """A rule with the names of its numbers."""

    apply: Callable[[int, float, Mapping[str, Any]], Scaled]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def scaled_rates(width: int, base: float, scaling: Mapping[str, Any] | None) -> Scaled:
    """Return the rates base ** (-2i / R) of R / 2 pairs, scaled, and the factor of cos and sin.

    Args:
        width: R, the rotated dimensions of a head.
        scaling: `rope_type` and the numbers of the rule; None: not scaled.

    Raises:
        FlagError: for unknown or missing numbers, with the names of the rule.
    """
    if scaling is None:
        return _plain(width, base), 1.0
    rule = _RULES.get(str(scaling.get("rope_type")))
    if rule is None:
        names = ", ".join(map(repr, _RULES))
        raise _error(f"must have a `rope_type` of {names}, but is {dict(scaling)!r}")
    numbers = {name: value for name, value in scaling.items() if name != "rope_type"}
    known = (*rule.required, *rule.optional)
    for name in numbers:
        if name not in known:
            raise _error(f"has no number {name!r} for {scaling['rope_type']!r}: use {', '.join(known)}")
    missing = [name for name in rule.required if numbers.get(name) is None]
    if missing:
        raise _error(f"needs {' and '.join(missing)} for {scaling['rope_type']!r}, but is {dict(scaling)!r}")
    for name, value in numbers.items():
        _check(name, value, width)
    return rule.apply(width, base, {name: value for name, value in numbers.items() if value is not None})


def longer_rates(width: int, base: float, scaling: Mapping[str, Any] | None) -> list[float] | None:
    """The rates of longer texts of a checked `scaling`; None where the rates do not depend on the length."""
    if scaling is None or scaling["rope_type"] != "longrope" or scaling.get("seq_len") is not None:
        return None
    return [rate / divisor for rate, divisor in zip(_plain(width, base), scaling["long_factor"])]


def _error(text: str) -> FlagError:
    return FlagError([Finding(FLAG, f"`{FLAG}` {text}")])


def _check(name: str, value: Any, width: int) -> None:
    """Check one number, or the list of a number for each pair; None leaves an optional one out."""
    if name == "truncate":
        if not isinstance(value, bool | None):
            raise _error(f"must have a `truncate` of True or False, but it is {value!r}")
    elif name.endswith("_factor") and name.split("_")[0] in ("long", "short"):
        if not isinstance(value, Sequence) or len(value) != width // 2 or not all(map(_positive, value)):
            text = f"must have a `{name}` of {width // 2} positive numbers, one for each rotated pair"
            raise _error(f"{text}, but it is {value!r}")
    elif value is not None and not _positive(value):
        raise _error(f"must have a positive number as `{name}`, but it is {value!r}")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _plain(width: int, base: float) -> Iterator[float]:
    return (base ** (-i / width) for i in range(0, width, 2))


def _linear(width: int, base: float, numbers: Mapping[str, Any]) -> Scaled:
    """Position interpolation (arXiv:2306.15595)."""
    return (rate / numbers["factor"] for rate in _plain(width, base)), 1.0


def _dynamic(width: int, base: float, numbers: Mapping[str, Any]) -> Scaled:
    """NTK-aware scaling of the base for texts of `seq_len` tokens."""
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]
    length = max(numbers["seq_len"], original)
    growth = factor * length / original - (factor - 1)
    return _plain(width, base * growth ** (width / (width - 2)) if width > 2 else base), 1.0


def _llama3(width: int, base: float, numbers: Mapping[str, Any]) -> Scaled:
    """Slow pairs are divided by the factor, fast ones are kept, others interpolated (Llama 3.1)."""
    factor, low, high = (numbers[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = numbers["original_max_position_embeddings"]

    def scaled(rate: float) -> float:
        turns = original * rate / (2 * math.pi)  # in a text of the original length
        if turns > high:
            return rate
        if turns < low:
            return rate / factor
        kept = (turns - low) / (high - low)
        return rate * (kept + (1 - kept) / factor)

    return map(scaled, _plain(width, base)), 1.0


def _yarn(width: int, base: float, numbers: Mapping[str, Any]) -> Scaled:
    """NTK by parts, and a factor of cos and sin (arXiv:2309.00071)."""
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]

    def pair_with(turns: float) -> float:
        """The pair that turns so often in a text of the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_with(numbers.get("beta_fast", 32)), pair_with(numbers.get("beta_slow", 1))
    if numbers.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last

    def scaled(pair: int, rate: float) -> float:
        divided = min(max((pair - first) / (last - first), 0.0), 1.0)
        return rate * (1 - divided + divided / factor)

    rates = (scaled(pair, rate) for pair, rate in enumerate(_plain(width, base)))
    return rates, _yarn_factor(factor, numbers)


def _yarn_factor(factor: float, numbers: Mapping[str, Any]) -> float:
    if "attention_factor" in numbers:
        return float(numbers["attention_factor"])

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    both = "mscale" in numbers and "mscale_all_dim" in numbers
    return of(numbers["mscale"]) / of(numbers["mscale_all_dim"]) if both else of(1.0)


def _longrope(width: int, base: float, numbers: Mapping[str, Any]) -> Scaled:
    """A divisor for each pair, by whether texts exceed the original length (arXiv:2402.13753). Without
    `seq_len` these are the rates of shorter texts, and `longer_rates` are those of longer ones."""
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]
    divisors = numbers["long_factor" if numbers.get("seq_len", 0) > original else "short_factor"]
    rates = (rate / divisor for rate, divisor in zip(_plain(width, base), divisors))
    if "attention_factor" in numbers:
        return rates, float(numbers["attention_factor"])
    return rates, math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


_LENGTHS = ("original_max_position_embeddings", "seq_len")
_RULES = {
    "linear": _Rule(_linear, ("factor",)),
    "dynamic": _Rule(_dynamic, ("factor", *_LENGTHS)),
    "llama3": _Rule(_llama3, ("factor", "low_freq_factor", "high_freq_factor", _LENGTHS[0])),
    "yarn": _Rule(
        _yarn,
        ("factor", _LENGTHS[0]),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": _Rule(
        _longrope,
        ("factor", "short_factor", "long_factor", _LENGTHS[0]),
        ("attention_factor", "seq_len"),
    ),
}
