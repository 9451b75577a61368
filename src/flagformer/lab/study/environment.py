"""The environment of a study: machine, versions, data, cores; saved with the results."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flagformer
from flagformer.lab.study.costs import Cost
from flagformer.lab.study.design import Study
from flagformer.lab.study.directory import ForeignDirectory
from flagformer.lab.study.resources import count_cores, share_out

PACKAGES = ("torch", "numpy", "scipy")


def describe_environment(
    study: Study, costs: dict[str, Cost], earlier: dict[str, Any], directory: Path
) -> dict[str, Any]:
    """The environment of this run of a study; `earlier` is that of earlier runs in the same directory.

    The number of threads per trial does not change, because it affects rounding.

    Raises:
        ForeignDirectory: the data has changed since the first run.
    """
    data = study.data.fingerprint()
    if earlier.get("data", data) != data:
        raise ForeignDirectory(
            f"{directory} was begun with other data (fingerprint {earlier['data']}, now {data}): the file "
            "or the Python version has changed since; choose another directory with --out"
        )
    plan = share_out(study, costs)
    threads = plan.threads
    if study.threads is None and "threads" in earlier:
        threads = int(earlier["threads"])
    return {
        "data": data,
        "executor": study.executor,
        "trials_at_once": plan.at_once,
        "threads": threads,
        "memory": {"trial": plan.trial, "free": plan.free},
        "machine": {
            "processor": _processor(),
            "cores": count_cores(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "packages": {"flagformer": flagformer.__version__, **{name: version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "variants": {name: asdict(cost) for name, cost in costs.items()},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the working directory, with `+` for uncommitted changes; None outside a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
