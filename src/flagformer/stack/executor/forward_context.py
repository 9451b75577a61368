"""Autocast and random number state, to be restored when a sublayer is recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class ForwardContext:
    """The autocast state at construction, and access to the generators of the CPU and a device."""

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
        """Enter the saved autocast state, uncached: casts cached under `no_grad` have no gradient."""
        with ExitStack() as entered:
            for name, enabled, dtype in self.casts:
                entered.enter_context(torch.autocast(name, dtype, enabled, cache_enabled=False))
            yield

    def rng_state(self) -> tuple[Tensor, ...]:
        """Return the state of torch's generators."""
        if self.device.type in ("cpu", "meta"):
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.get_device_module(self.device).get_rng_state(self.device)

    def set_rng_state(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.get_device_module(self.device).set_rng_state(states[1], self.device)

    @contextmanager
    def with_rng_state(self, states: tuple[Tensor, ...] | None) -> Iterator[None]:
        """Set the generators' state temporarily; None leaves it unchanged."""
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
