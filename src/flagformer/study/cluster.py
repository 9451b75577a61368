"""The trials of a study on a Ray cluster that is there: `executor: ray`, at the address in RAY_ADDRESS.

A trial is a Ray task in a worker of its own, with the study's cores, GPUs and memory reserved. Where its node
sees the run directory it trains there and goes on from its last checkpoint after a loss; where not, it trains
in a folder of its node, and what it has made comes back when it is finished. A node must have the packages
and the data that the study began with, or results could not be compared: what differs is said and refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

import torch

import flagformer
from flagformer.study.directory import OUTPUT, RESULT
from flagformer.study.executor import Ended, Executor, Failure, Job
from flagformer.study.failures import describe
from flagformer.study.worker import offer_for_memory, redirect_output, wait_until_free
from flagformer.train.files import write_atomic

GIB = 2**30
PATIENCE = 10.0  # seconds for the head of a cluster to answer
TOKEN = "study.token"  # a node that reads it here sees the run directory
Files = dict[str, bytes]


@dataclass(frozen=True)
class Resources:
    """What a trial reserves on a node."""

    cpus: int
    gpus: float
    memory: int  # bytes

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus} cores{gpus} and {self.memory / GIB:.1f} GiB of memory"

    def times(self, resources: dict[str, float]) -> int:
        """How many such trials fit into the resources of a node."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(resources.get(name, 0) / value) for name, value in wanted.items() if value)


@dataclass(frozen=True)
class TaskSpec:
    """All that a node must know to run a trial."""

    function: Callable[[Any, Path], object]
    trial: Any
    directory: Path
    folder: Path  # from which relative paths of the data start
    threads: int
    versions: dict[str, str]
    data: str  # fingerprint
    token: str


class Cluster(Executor[Job]):
    """Runs trials as tasks of the Ray cluster at RAY_ADDRESS, or the one that runs on this machine.

    Args:
        function: `function(trial, directory)`, a module-level function of a module that nodes have too.
        directory: of the run.
        gpus: of one trial; None: 1 where the cluster has any.
        most: trials at once; None: as many as the cluster holds.

    Raises:
        ValueError: ray is not installed, no cluster runs, or no node of it has room for one trial.
    """

    def __init__(
        self,
        function: Callable[[Any, Path], object],
        directory: Path,
        threads: int,
        memory: int,
        data: str,
        gpus: float | None = None,
        most: int | None = None,
    ) -> None:
        self.ray, self.most = connect(), most
        if gpus is None:
            gpus = float(any(node["Resources"].get("GPU") for node in self._nodes()))
        self.needs = Resources(threads, gpus, memory)
        if not self._room():
            self.ray.shutdown()
            raise ValueError(
                f"`executor: ray` finds no node with {self.needs} for a trial; "
                "lower `threads`, `gpus` or `memory`"
            )
        self.directory, self.function = directory.absolute(), function
        self.data, self.token = data, os.urandom(8).hex()
        write_atomic(self.directory / TOKEN, self.token.encode())
        # max_calls: a process per trial, as on one machine; max_retries: the study starts again and says so
        self.task = self.ray.remote(
            max_calls=1, max_retries=0, num_cpus=threads, num_gpus=gpus, memory=memory
        )(run_here)
        self.running: dict[Any, Running[Job]] = {}

    @property
    def has_room(self) -> bool:
        # one at least: a cluster that has lost its nodes may get others
        return len(self.running) < (self.most or max(1, self._room()))

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def start(self, job: Job, trial: Any, directory: Path) -> None:
        place = directory.absolute()
        order = TaskSpec(
            self.function, trial, place, Path.cwd(), self.needs.cpus, versions(), self.data, self.token
        )
        self.running[self.task.remote(order)] = Running(job, place)

    def ended(self, timeout: float) -> list[Ended[Job]]:
        if not self.running:
            time.sleep(timeout)
            return []
        ready, _ = self.ray.wait(list(self.running), timeout=timeout, fetch_local=False)
        return [self._end(task) for task in ready]

    def stop(self) -> None:
        for task in self.running:
            with contextlib.suppress(Exception):  # of a node or worker that is gone already
                self.ray.cancel(task, force=True)
        self.running = {}
        (self.directory / TOKEN).unlink(missing_ok=True)
        self.ray.shutdown()

    def _end(self, task: Any) -> Ended[Job]:
        running = self.running.pop(task)
        try:
            files, failure = self.ray.get(task)
            _unpack(files, running.directory)
        except self.ray.exceptions.RayError as error:
            failure = self._of_ray(error)
        except OSError as error:
            failure = describe(error)
        return Ended(running.job, failure)

    def _of_ray(self, error: Exception) -> Failure:
        known, text = self.ray.exceptions, " ".join(str(error).split())
        if isinstance(error, known.OutOfMemoryError):
            return Failure("memory", "Ray has ended the trial, as its node was out of memory")
        if isinstance(error, (known.NodeDiedError, known.LocalRayletDiedError)):
            return Failure("lost", "its node was lost")
        if isinstance(error, known.WorkerCrashedError):
            return Failure("lost", "its process or its node was killed")
        if isinstance(error, known.ObjectLostError):
            return Failure("lost", "what it had made was lost with its node")
        return Failure("error", f"{type(error).__name__}: {text[:200]}")

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        return sum(self.needs.times(node["Resources"]) for node in self._nodes())


@dataclass
class Running(Generic[Job]):
    """A trial under way."""

    job: Job
    directory: Path


def connect() -> Any:
    """The package ray, connected to the cluster; ValueError where there is none of either."""
    ray, address = import_ray(), os.environ.get("RAY_ADDRESS") or "auto"
    try:
        check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ValueError(
            f"`executor: ray` needs a cluster that runs, but finds none {where}: start one with "
            f"`ray start --head`, or name its address in RAY_ADDRESS ({' '.join(str(error).split())[:120]})"
        ) from None
    return ray


def check_reachable(address: str) -> None:
    """OSError if nobody listens at `HOST:PORT`; Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def import_ray() -> Any:
    """The package ray; ValueError with the command that installs it."""
    try:
        import ray
    except ImportError:
        raise ValueError(
            "`executor: ray` needs the package ray, which is not installed: pip install 'flagformer[ray]'"
        ) from None
    return ray


def versions() -> dict[str, str]:
    """Packages on which a result depends."""
    return {"flagformer": flagformer.__version__, "torch": torch.__version__, "numpy": version("numpy")}


def run_here(order: TaskSpec) -> tuple[Files, Failure | None]:
    """The body of a task, on its node: runs the trial and returns the files that the study cannot see."""
    offer_for_memory()
    if order.folder.is_dir():
        os.chdir(order.folder)
    shared = _sees(order)
    place = order.directory if shared else Path(tempfile.mkdtemp(prefix="flagformer-"))
    try:
        failure = _run(order, place)
        return {} if shared else _packed(place), failure
    finally:
        if not shared:
            shutil.rmtree(place, ignore_errors=True)


def _run(order: TaskSpec, place: Path) -> Failure | None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        redirect_output(place / OUTPUT)
        refuse_differences(order)
        torch.set_num_threads(order.threads)
        wait_until_free(place)
        order.function(order.trial, place)
    except Exception as error:
        return describe(error)
    return None


def refuse_differences(order: TaskSpec) -> None:
    """ValueError if this node would train on other data or by other packages than the study."""
    mine, name = versions(), os.uname().nodename
    for package_, wanted in order.versions.items():
        if mine[package_] != wanted:
            raise ValueError(
                f"node {name} has {package_} {mine[package_]}, the study {wanted}; install the same"
            )
    data = order.trial.source.fingerprint()
    if data != order.data:
        raise ValueError(
            f"node {name} has other data (fingerprint {data}, the study's {order.data}): files or Python "
            "versions differ"
        )


def _sees(order: TaskSpec) -> bool:
    try:
        return (order.directory.parents[1] / TOKEN).read_text() == order.token
    except OSError:
        return False


def _packed(place: Path) -> Files:
    """What a trial leaves; of one that is not finished only what says why."""
    finished = (place / RESULT).exists()
    paths = [path for path in sorted(place.rglob("*")) if path.is_file()] if finished else [place / OUTPUT]
    return {str(path.relative_to(place)): path.read_bytes() for path in paths if path.exists()}


def _unpack(files: Files, directory: Path) -> None:
    """Writes the files of a trial, its result last: with it, all else is there."""
    for name in sorted(files, key=lambda name: (name == RESULT, name)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, files[name])
