"""What runs the trials of a study: the contract that the local pool and a Ray cluster share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Job = TypeVar("Job")


@dataclass(frozen=True)
class Failure:
    """Why a trial did not finish.

    `kind`: "error", "disk" (no space), "memory" (none left), or what another attempt may mend: "killed" (its
    process) and "lost" (its node).
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Ended(Generic[Job]):
    """A trial that is under way no more; `failure` is None when the trial function returned."""

    job: Job
    failure: Failure | None


class Executor(ABC, Generic[Job]):
    """Starts trials and says how they ended; whatever ends one of them, the others go on."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether another trial may start."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a trial is under way."""

    @abstractmethod
    def start(self, job: Job, trial: object, directory: Path) -> None:
        """Starts the trial function on `(trial, directory)`; `job` comes back with its end."""

    @abstractmethod
    def ended(self, timeout: float) -> list[Ended[Job]]:
        """The trials that ended, waiting up to `timeout` seconds for the first of them."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every trial that is under way; their checkpoints stay."""
