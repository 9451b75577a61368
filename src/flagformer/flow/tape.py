"""Results that are not the result: auxiliary losses, and tensors somebody asked to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


class Tape:
    """Collects losses by name, and tensors by name when asked for.

    Args:
        wanted: names that `keep` stores, for example {"attn.weights"}; everything else is dropped at once.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self.wanted = frozenset(wanted)
        self.losses: dict[str, list[Tensor]] = {}
        self.kept: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def keep(self, name: str, value: Tensor) -> None:
        if name in self.wanted:
            self.kept.setdefault(name, []).append(value)

    def add_loss(self, name: str, value: Tensor) -> None:
        self.losses.setdefault(name, []).append(value)

    def part(self) -> Tape:
        """An empty tape of the same wishes, for one of several that share a result."""
        return Tape(self.wanted)

    def add_losses(self, losses: Mapping[str, Iterable[Tensor]]) -> None:
        """Joins the losses of a part."""
        for name, values in losses.items():
            self.losses.setdefault(name, []).extend(values)
