"""The interface of trial executors: the local pool and the Ray cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Job = TypeVar("Job")


@dataclass(frozen=True)
class Failure:
    """The reason why a trial did not finish.

    Attributes:
        kind: "error", "disk" (full), "memory" (out of memory), "killed" (the process) or "lost" (the node);
            the last two may be retried.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Ended(Generic[Job]):
    """A trial that has ended; `failure` is None if the trial function returned."""

    job: Job
    failure: Failure | None


class Executor(ABC, Generic[Job]):
    """Starts trials and reports their ends; the failure of one trial does not affect the others."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether another trial may start."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a trial is running."""

    @abstractmethod
    def start(self, job: Job, trial: object, directory: Path) -> None:
        """Start the trial function on `(trial, directory)`; `job` is returned when it ends."""

    @abstractmethod
    def ended(self, timeout: float) -> list[Ended[Job]]:
        """Wait up to `timeout` seconds for a trial to end, and return the trials that have ended."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all running trials; their checkpoints remain."""
