"""SIGINT and SIGTERM: training stops after a step that is saved, everything else at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """What the signals of this process ask of a training run.

    Attributes:
        asked: whether a signal has come that waits for the end of a step.
    """

    def __init__(self, *, patient: bool = False) -> None:
        """`patient`: a second signal asks the same once more, as `torchrun` passes on what the terminal has
        sent already; otherwise it stops at once."""
        self.asked = False
        self.patient = patient
        self.steps = 0  # how many `after_steps` are open

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM raise KeyboardInterrupt; a signal that the process ignores stays
        ignored. In another thread than the main one, where Python takes no handlers, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number])

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """Inside, a signal sets `asked` instead, so that a step is finished and saved first."""
        self.steps += 1
        try:
            yield
        finally:
            self.steps -= 1

    def _hear(self, number: int, frame: object) -> None:
        if self.steps and (self.patient or not self.asked):
            self.asked = True
            return
        raise KeyboardInterrupt
