"""Runs each trial in its own process of a preloaded fork server, so that trials cannot affect each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic

from flagformer.lab.imports import carried
from flagformer.lab.study.executor import Ended, Executor, Failure, Job
from flagformer.lab.study.failures import count_oom_kills, killed
from flagformer.lab.study.worker import work

GRACE = 5.0  # seconds between the request to terminate and the kill


@dataclass
class Running(Generic[Job]):
    """A running trial."""

    job: Job
    process: BaseProcess
    channel: Connection
    oom_kills: int


class Pool(Executor[Job]):
    """At most `size` parallel trial processes with `threads` threads each.

    Args:
        function: `function(trial, directory)`, a module-level function.
        preload: modules that the fork server imports once, so that a trial starts in milliseconds.
    """

    def __init__(
        self, function: Callable[[object, Path], object], size: int, threads: int, preload: Sequence[str] = ()
    ) -> None:
        self.function, self.size, self.threads = function, size, threads
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        self.running: list[Running[Job]] = []

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.size

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def start(self, job: Job, trial: object, directory: Path) -> None:
        receive, send = self.context.Pipe(duplex=False)
        arguments = (self.function, carried(trial), directory, self.threads, send)
        # daemon: an exit without `stop` must not wait for running trials
        process = self.context.Process(
            target=work, args=arguments, name=f"trial {directory.name}", daemon=True
        )
        process.start()
        send.close()
        self.running.append(Running(job, process, receive, count_oom_kills()))

    def ended(self, timeout: float) -> list[Ended[Job]]:
        ready = wait([running.process.sentinel for running in self.running], timeout)
        done = [running for running in self.running if running.process.sentinel in ready]
        self.running = [running for running in self.running if running not in done]
        return [Ended(running.job, _failure(running)) for running in done]

    def stop(self) -> None:
        for running in self.running:
            running.process.terminate()
        for running in self.running:
            running.process.join(GRACE)
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
        self.running = []


def _failure(running: Running) -> Failure | None:
    running.process.join()
    message = None
    if running.channel.poll():
        try:
            message = running.channel.recv()
        except EOFError:
            message = None
    running.channel.close()
    code = running.process.exitcode
    return message if message is not None or code == 0 else killed(code, running.oom_kills)
