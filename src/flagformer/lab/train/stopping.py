"""SIGINT and SIGTERM: training stops after the current step with a checkpoint, other work immediately."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Handles the signals of this process during a training run.

    Attributes:
        requested: whether a signal was received that stops training after the current step.
    """

    def __init__(self, *, patient: bool = False) -> None:
        """
        Args:
            patient: ignore a second signal, as `torchrun` repeats the signal of the terminal; otherwise a
                second signal stops immediately.
        """
        self.requested = False
        self.patient = patient
        self.steps = 0  # number of active `after_steps` contexts

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Raise KeyboardInterrupt on SIGINT and SIGTERM inside; ignored signals remain ignored. No effect
        outside the main thread, where Python does not allow handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        handled = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
        for number in handled:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in handled:
                signal.signal(number, before[number])

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """Set `requested` on a signal inside, so that the current step is finished and saved first."""
        self.steps += 1
        try:
            yield
        finally:
            self.steps -= 1

    def _handle(self, number: int, frame: object) -> None:
        if self.steps and (self.patient or not self.requested):
            self.requested = True
            return
        raise KeyboardInterrupt
