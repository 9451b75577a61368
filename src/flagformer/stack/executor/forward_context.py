"""What surrounds a sublayer and must be the same when it is computed again: random numbers and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class ForwardContext:
    """Autocast as it stood when this was made, and access to the generators of the CPU and a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        types = [
            name for name in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(name)
        ]
        self.casts = [
            (name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in types
        ]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The same casts. Without their cache: one filled without gradients would cut weights off."""
        with ExitStack() as entered:
            for name, enabled, dtype in self.casts:
                entered.enter_context(torch.autocast(name, dtype, enabled, cache_enabled=False))
            yield

    def rng_state(self) -> tuple[Tensor, ...]:
        """Where torch's generators stand."""
        if self.device.type in ("cpu", "meta"):
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.get_device_module(self.device).get_rng_state(self.device)

    def set_rng_state(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.get_device_module(self.device).set_rng_state(states[1], self.device)

    @contextmanager
    def with_rng_state(self, states: tuple[Tensor, ...] | None) -> Iterator[None]:
        """Generators that stand there for a while, and then as before; None: nothing is drawn."""
        if states is None:
            yield
            return
        now = self.rng_state()
        self.set_rng_state(states)
        try:
            yield
        finally:
            self.set_rng_state(now)


def same_rng(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))
