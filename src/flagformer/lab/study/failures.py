"""One-line descriptions of failures: errors, full disks, out of memory, kills."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

from flagformer.lab.study.executor import Failure

COUNTERS = Path("/proc/vmstat")
TRIED = re.compile(r"tried to allocate (\S+ ?\w+)", re.IGNORECASE)  # torch, on a CPU and on a GPU


def describe(error: BaseException) -> Failure:
    """The failure in one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure("disk", f"the disk is full: {error.filename or error.strerror}")
    text = " ".join(str(error).split()) or "no message"
    if _is_memory(error, text):
        tried = TRIED.search(text)
        requested = f" when allocating {tried[1].rstrip('.')}" if tried else ""
        return Failure(
            "memory", f"out of memory{requested}; lower `train.batch_size` or raise `train.accumulate`"
        )
    if isinstance(error, ValueError):
        return Failure("error", text)
    return Failure("error", f"{type(error).__name__}: {text}")


def killed(exit_code: int | None, oom_kills: int) -> Failure:
    """The failure of a process that reported none; `oom_kills` is the system's count at its start."""
    if exit_code is None or exit_code >= 0:
        return Failure("killed", f"the process ended with status {exit_code}")
    if exit_code == -signal.SIGKILL and count_oom_kills() > oom_kills:
        return Failure("memory", "the process was killed by the system because it was out of memory")
    return Failure("killed", f"the process was killed by {_signal_name(-exit_code)}")


def count_oom_kills() -> int:
    """The number of processes that the system has killed when out of memory; 0 if unknown."""
    try:
        lines = COUNTERS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _is_memory(error: BaseException, text: str) -> bool:
    """torch has an exception class for GPU memory; for CPU memory it raises RuntimeError with this text."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
