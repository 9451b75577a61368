"""Which self-attention sublayers of a plan are replaced by mixers, or joined by them, in pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flagformer.flags import Finding, FlagError

ATTENTION = "attention"  # keeps a layer's self-attention
Pattern = tuple[str, ...] | str | None


class PlacedMixers(NamedTuple):
    """The sublayers of a plan with mixers.

    Attributes:
        kinds: the kind of each sublayer.
        mixers: the name of the mixer of each "m"; None where the pattern has none.
        places: the index among the kinds before, for each sublayer: those of one place run in parallel.
    """

    kinds: tuple[str, ...]
    mixers: tuple[str | None, ...]
    places: tuple[int, ...]


def place_mixers(kinds: Sequence[str], pattern: Pattern, order: str = "") -> PlacedMixers:
    """Replace self-attention by mixers.

    Args:
        kinds: the kinds of the sublayers. If some are "m", only these take mixers, else those that are "a".
        pattern: the name of a mixer for all of them; a name for each; or numbers and names that repeat, as in
            "3 gated_deltanet : 1 attention". "attention" keeps self-attention. Names joined by "+", as in
            "mamba2 + attention", are sublayers in parallel. None: no name.
        order: the flag that determines `kinds`, for messages; empty for none.
    """
    target = "m" if "m" in kinds else "a"
    count = sum(kind == target for kind in kinds)
    if pattern is None:
        return PlacedMixers(tuple(kinds), (None,) * (count if target == "m" else 0), tuple(range(len(kinds))))
    layers = [
        _in_parallel(name, pattern) for name in _names(pattern, count, f" (`{order}`)" if order else "")
    ]
    names = [name for layer in layers for name in layer]
    if target == "m" and ATTENTION in names:
        _refuse(f"must name a mixer for each 'm' of `custom_layers`, but is {pattern!r}")
    remaining = iter(layers)
    placed = [
        (target if name == ATTENTION else "m" if kind == target else kind, place)
        for place, kind in enumerate(kinds)
        for name in (next(remaining) if kind == target else [""])
    ]
    mixers = tuple(name for name in names if name != ATTENTION)
    return PlacedMixers(tuple(kind for kind, _ in placed), mixers, tuple(place for _, place in placed))


def _in_parallel(layer: str, pattern: Pattern) -> list[str]:
    """`"mamba2 + attention"` -> two names."""
    names = [name.strip() for name in layer.split("+")]
    if not all(names) or names.count(ATTENTION) > 1:
        _refuse(f"must join different sublayers by '+', as in 'mamba2 + attention', but is {pattern!r}")
    return names


def _names(pattern: tuple[str, ...] | str, count: int, order: str) -> list[str]:
    """A name for each of `count` sublayers."""
    if not count:
        _refuse(
            f"has no effect here, because this model has no self-attention to replace{order}; leave it out"
        )
    if isinstance(pattern, tuple):
        if len(pattern) != count:
            _refuse(f"has {len(pattern)} names for {count} layers{order}; pass one name, or one for each")
        return list(pattern)
    block = [name for part in pattern.split(":") for name in _repeated(part, pattern)]
    if count % len(block):
        _refuse(
            f"repeats {len(block)} layers, which does not divide the number of layers, {count}{order}; "
            f"change one of both, or pass a name for each layer"
        )
    return block * (count // len(block))


def _repeated(part: str, pattern: str) -> list[str]:
    """`"3 gated_deltanet"` -> three names; `"mamba2 + attention"` -> one."""
    first, _, rest = part.strip().partition(" ")
    number, name = (first, rest) if first.isdecimal() else ("1", part.strip())
    wrong = any(len(word.split()) != 1 for word in name.split("+"))
    if wrong or not int(number):
        _refuse(f"must be a name or a pattern such as '3 gated_deltanet : 1 attention', but is {pattern!r}")
    return [name] * int(number)


def _refuse(text: str) -> None:
    raise FlagError([Finding("mixer", f"`mixer` {text}")])
