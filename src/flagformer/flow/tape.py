"""Results that are not the result: auxiliary losses, and tensors somebody asked to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


class Tape:
    """Collects losses by name, and tensors by name when asked for.

    Args:
        wanted: names that `keep` stores, for example {"attn.weights"}; everything else is dropped at once.
        weights: losses that are made only when somebody asks, and what each is multiplied by.
        remembered: execution steps whose stream `remember` stores, for `Memories`.

    `asked` says whether any of these is there: most forwards need not look further.
    """

    def __init__(
        self,
        wanted: Iterable[str] = (),
        weights: Mapping[str, float] | None = None,
        remembered: Iterable[int] = (),
    ) -> None:
        self.wanted = frozenset(wanted)
        self.weights = dict(weights or {})
        self.remembered = frozenset(remembered)
        self.asked = bool(self.wanted or self.weights or self.remembered)
        self.streams: dict[int, Tensor] = {}
        self.losses: dict[str, list[Tensor]] = {}
        self.kept: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def asks(self, name: str) -> bool:
        """Whether a loss of this name is to be made."""
        return name in self.weights

    def keep(self, name: str, value: Tensor) -> None:
        if name in self.wanted:
            self.kept.setdefault(name, []).append(value)

    def remember(self, step: int, stream: Tensor) -> None:
        """What a step reads, before its norm [B, T, D]."""
        if step in self.remembered:
            self.streams[step] = stream

    def add_loss(self, name: str, value: Tensor) -> None:
        self.losses.setdefault(name, []).append(value)

    def add_losses(self, losses: Mapping[str, list[Tensor]]) -> None:
        for name, values in losses.items():
            self.losses.setdefault(name, []).extend(values)

    def part(self) -> Tape:
        """An empty tape of the same wishes: for a computation that may run twice, or for one of several that
        share a result."""
        return Tape(self.wanted, self.weights)
