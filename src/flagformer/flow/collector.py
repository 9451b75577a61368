"""Side outputs of a forward: auxiliary losses, and intermediate tensors on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


class OutputCollector:
    """Collects losses by name, and intermediate tensors by name on request.

    Args:
        requested: names that `record` stores, for example {"attn.weights"}; all others are dropped.
        weights: name -> weight of each loss that is computed only on request.
        hidden_steps: execution steps whose stream `record_hidden` stores, for `RecurrentState`.

    `is_active` is True if any of these is set. Most forwards check this alone.
    """

    def __init__(
        self,
        requested: Iterable[str] = (),
        weights: Mapping[str, float] | None = None,
        hidden_steps: Iterable[int] = (),
    ) -> None:
        self.requested = frozenset(requested)
        self.weights = dict(weights or {})
        self.hidden_steps = frozenset(hidden_steps)
        self.is_active = bool(self.requested or self.weights or self.hidden_steps)
        self.hiddens: dict[int, Tensor] = {}
        self.losses: dict[str, list[Tensor]] = {}
        self.recorded: dict[str, list[Tensor]] = {}

    def is_requested(self, name: str) -> bool:
        return name in self.requested

    def is_loss_requested(self, name: str) -> bool:
        """Whether to compute the loss of this name."""
        return name in self.weights

    def record(self, name: str, value: Tensor) -> None:
        if name in self.requested:
            self.recorded.setdefault(name, []).append(value)

    def record_hidden(self, step: int, stream: Tensor) -> None:
        """Store the input [B, T, D] of a step, before its norm."""
        if step in self.hidden_steps:
            self.hiddens[step] = stream

    def add_loss(self, name: str, value: Tensor) -> None:
        self.losses.setdefault(name, []).append(value)

    def add_losses(self, losses: Mapping[str, list[Tensor]]) -> None:
        for name, values in losses.items():
            self.losses.setdefault(name, []).extend(values)

    def fork(self) -> OutputCollector:
        """Return an empty collector with the same requests, for a computation that may run twice or whose
        outputs are combined later."""
        return OutputCollector(self.requested, self.weights)
