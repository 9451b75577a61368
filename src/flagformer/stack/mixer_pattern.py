"""Which self-attention sublayers of a plan are replaced by mixers, in pure Python."""

from __future__ import annotations

from collections.abc import Sequence

from flagformer.flags import Finding, FlagError

ATTENTION = "attention"  # keeps a layer's self-attention
Pattern = tuple[str, ...] | str | None


def place_mixers(
    kinds: Sequence[str], pattern: Pattern, order: str = ""
) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Replace self-attention by mixers.

    Args:
        kinds: the kinds of the sublayers. If some are "m", only these take mixers, else those that are "a".
        pattern: the name of a mixer for all of them; a name for each; or numbers and names that repeat, as in
            "3 gated_deltanet : 1 attention". "attention" keeps self-attention. None: no name.
        order: the flag that determines `kinds`, for messages; empty for none.

    Returns:
        The kinds, and the name of the mixer of each "m"; None where the pattern has none.
    """
    target = "m" if "m" in kinds else "a"
    indices = [index for index, kind in enumerate(kinds) if kind == target]
    if pattern is None:
        return tuple(kinds), (None,) * (len(indices) if target == "m" else 0)
    names = _names(pattern, len(indices), f" (`{order}`)" if order else "")
    if target == "m" and ATTENTION in names:
        _refuse(f"must name a mixer for each 'm' of `custom_layers`, but is {pattern!r}")
    changed = list(kinds)
    for index, name in zip(indices, names):
        changed[index] = target if name == ATTENTION else "m"
    return tuple(changed), tuple(name for name in names if name != ATTENTION)


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
    """`"3 gated_deltanet"` -> three names; `"attention"` -> one."""
    words = part.split()
    number = words.pop(0) if len(words) == 2 else "1"
    if len(words) != 1 or not number.isdecimal() or not int(number):
        _refuse(f"must be a name or a pattern such as '3 gated_deltanet : 1 attention', but is {pattern!r}")
    return words * int(number)


def _refuse(text: str) -> None:
    raise FlagError([Finding("mixer", f"`mixer` {text}")])
