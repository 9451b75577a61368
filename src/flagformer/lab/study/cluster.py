"""Runs the trials of a study on an existing Ray cluster: `executor: ray`, at the address in RAY_ADDRESS.

A trial is a Ray task in its own worker, with cores, GPUs and memory reserved. If its node shares the run
directory, the trial trains there and resumes from its last checkpoint after a loss; otherwise it trains in a
temporary directory of the node, and its files are copied back when it is finished. A node must have the
packages and the data of the study, so that results are comparable; differences raise an error.
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
from typing import Any

import torch

import flagformer
from flagformer.lab.imports import carried
from flagformer.lab.study.directory import OUTPUT, RESULT
from flagformer.lab.study.executor import Ended, Executor, Failure, Job
from flagformer.lab.study.failures import describe
from flagformer.lab.study.worker import raise_oom_score, redirect_output, wait_until_free
from flagformer.lab.train.files import write_atomic
from flagformer.ops.memory import GIB

PATIENCE = 10.0  # seconds for the head of a cluster to answer
TOKEN = "study.token"  # a node that can read this file shares the run directory
Files = dict[str, bytes]


@dataclass(frozen=True)
class Resources:
    """The resources that a trial reserves on a node."""

    cpus: int
    gpus: float
    memory: int  # bytes

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus} cores{gpus} and {self.memory / GIB:.1f} GiB of memory"

    def times(self, resources: dict[str, float]) -> int:
        """The number of such trials that fit into the resources of a node."""
        required = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(resources.get(name, 0) / value) for name, value in required.items() if value)


@dataclass(frozen=True)
class TaskSpec:
    """The description of a trial that is sent to a node."""

    function: Callable[[Any, Path], object]
    trial: Any
    directory: Path
    folder: Path  # base of the data's relative paths
    threads: int
    versions: dict[str, str]
    data: str  # fingerprint
    token: str


class Cluster(Executor[Job]):
    """Runs trials as tasks of the Ray cluster at RAY_ADDRESS, or the one that runs on this machine.

    Args:
        function: `function(trial, directory)`, a module-level function of a module that is installed on the
            nodes.
        directory: the run directory.
        gpus: GPUs of one trial; None: 1 if the cluster has any.
        most: trials in parallel; None: as many as the cluster can run.

    Raises:
        ValueError: ray is not installed, no cluster runs, or no node has the resources of one trial.
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
        if not self._capacity():
            self.ray.shutdown()
            raise ValueError(
                f"`executor: ray` finds no node with {self.needs} for a trial; "
                "lower `threads`, `gpus` or `memory`"
            )
        self.directory, self.function = directory.absolute(), function
        self.data, self.token = data, os.urandom(8).hex()
        write_atomic(self.directory / TOKEN, self.token.encode())
        # max_calls: one process per trial, as on one machine; max_retries: the study retries and logs it
        self.task = self.ray.remote(
            max_calls=1, max_retries=0, num_cpus=threads, num_gpus=gpus, memory=memory
        )(run_here)
        self.running: dict[Any, tuple[Job, Path]] = {}  # by task: the job and its directory

    @property
    def has_room(self) -> bool:
        # at least one: a cluster that has lost its nodes may get new ones
        return len(self.running) < (self.most or max(1, self._capacity()))

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def start(self, job: Job, trial: Any, directory: Path) -> None:
        directory = directory.absolute()
        spec = TaskSpec(
            self.function,
            carried(trial),
            directory,
            Path.cwd(),
            self.needs.cpus,
            versions(),
            self.data,
            self.token,
        )
        self.running[self.task.remote(spec)] = (job, directory)

    def ended(self, timeout: float) -> list[Ended[Job]]:
        if not self.running:
            time.sleep(timeout)
            return []
        ready, _ = self.ray.wait(list(self.running), timeout=timeout, fetch_local=False)
        return [self._end(task) for task in ready]

    def stop(self) -> None:
        for task in self.running:
            with contextlib.suppress(Exception):  # the node or worker may be gone already
                self.ray.cancel(task, force=True)
        self.running = {}
        (self.directory / TOKEN).unlink(missing_ok=True)
        self.ray.shutdown()

    def _end(self, task: Any) -> Ended[Job]:
        job, directory = self.running.pop(task)
        try:
            files, failure = self.ray.get(task)
            _write_files(files, directory)
        except self.ray.exceptions.RayError as error:
            failure = self._of_ray(error)
        except OSError as error:
            failure = describe(error)
        return Ended(job, failure)

    def _of_ray(self, error: Exception) -> Failure:
        known, text = self.ray.exceptions, " ".join(str(error).split())
        if isinstance(error, known.OutOfMemoryError):
            return Failure("memory", "Ray stopped the trial because its node was out of memory")
        if isinstance(error, (known.NodeDiedError, known.LocalRayletDiedError)):
            return Failure("lost", "its node was lost")
        if isinstance(error, known.WorkerCrashedError):
            return Failure("lost", "its process or its node was killed")
        if isinstance(error, known.ObjectLostError):
            return Failure("lost", "its results were lost with its node")
        return Failure("error", f"{type(error).__name__}: {text[:200]}")

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _capacity(self) -> int:
        return sum(self.needs.times(node["Resources"]) for node in self._nodes())


def connect() -> Any:
    """Import ray and connect to the cluster; ValueError if either is missing."""
    ray, address = import_ray(), os.environ.get("RAY_ADDRESS") or "auto"
    try:
        check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ValueError(
            f"`executor: ray` needs a running cluster, but finds none {where}: start one with "
            f"`ray start --head`, or name its address in RAY_ADDRESS ({' '.join(str(error).split())[:120]})"
        ) from None
    return ray


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at `HOST:PORT`; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def import_ray() -> Any:
    """The package ray; ValueError with the install command if it is missing."""
    try:
        import ray
    except ImportError:
        raise ValueError(
            "`executor: ray` needs the package ray, which is not installed: pip install 'flagformer[ray]'"
        ) from None
    return ray


def versions() -> dict[str, str]:
    """Versions of the packages that affect results."""
    return {"flagformer": flagformer.__version__, "torch": torch.__version__, "numpy": version("numpy")}


def run_here(spec: TaskSpec) -> tuple[Files, Failure | None]:
    """The body of a task on its node: run the trial; return its files if the run directory is not shared."""
    raise_oom_score()
    if spec.folder.is_dir():
        os.chdir(spec.folder)
    shared = _is_shared(spec)
    directory = spec.directory if shared else Path(tempfile.mkdtemp(prefix="flagformer-"))
    try:
        failure = _run(spec, directory)
        return {} if shared else _collect_files(directory), failure
    finally:
        if not shared:
            shutil.rmtree(directory, ignore_errors=True)


def _run(spec: TaskSpec, directory: Path) -> Failure | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        redirect_output(directory / OUTPUT)
        refuse_differences(spec)
        torch.set_num_threads(spec.threads)
        wait_until_free(directory)
        spec.function(spec.trial, directory)
    except Exception as error:
        return describe(error)
    return None


def refuse_differences(spec: TaskSpec) -> None:
    """Raise ValueError if this node has other data or package versions than the study."""
    installed, name = versions(), os.uname().nodename
    for package, required in spec.versions.items():
        if installed[package] != required:
            raise ValueError(
                f"node {name} has {package} {installed[package]}, but the study has {required}; install the "
                "same version"
            )
    data = spec.trial.source.fingerprint()
    if data != spec.data:
        raise ValueError(
            f"node {name} has other data (fingerprint {data}, that of the study is {spec.data}): files or "
            "Python versions differ"
        )


def _is_shared(spec: TaskSpec) -> bool:
    try:
        return (spec.directory.parents[1] / TOKEN).read_text() == spec.token
    except OSError:
        return False


def _collect_files(directory: Path) -> Files:
    """The files of a finished trial; only the output of any other."""
    finished = (directory / RESULT).exists()
    paths = sorted(directory.rglob("*")) if finished else [directory / OUTPUT]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths if path.is_file()}


def _write_files(files: Files, directory: Path) -> None:
    """Write the files of a trial, the result last, so that a result implies that all files are complete."""
    for name in sorted(files, key=lambda name: (name == RESULT, name)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, files[name])
