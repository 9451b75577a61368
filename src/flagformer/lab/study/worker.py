"""The process of one trial: it ends with the study, waits for its directory, and reports failures."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from pathlib import Path

from flagformer.lab.study.directory import OUTPUT
from flagformer.lab.study.failures import describe
from flagformer.lab.train.files import only_process

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
OOM_SCORE = 500  # of 1000: if out of memory, the system kills a trial before it kills the study
PATIENCE = 15.0  # seconds a worker waits for the last worker of a killed study to end


def work(
    function: Callable[[object, Path], object],
    trial: object,
    directory: Path,
    threads: int,
    channel: Connection,
) -> None:
    """The body of a trial process: `function(trial, directory)` on `threads` threads.

    Its output goes to output.txt. A failure is sent through `channel`, which also works with a full disk.
    """
    _die_with_parent()
    raise_oom_score()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the study stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        redirect_output(directory / OUTPUT)
        _set_threads(threads)
        wait_until_free(directory)
        function(trial, directory)
    except BaseException as error:
        channel.send(describe(error))
        with contextlib.suppress(OSError):  # the disk may be full
            traceback.print_exc()
        os._exit(1)


def wait_until_free(directory: Path) -> None:
    """Wait for an orphaned worker of a killed study to end; the trial itself raises if the directory remains
    locked."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with only_process(directory):
                return
        except ValueError:
            time.sleep(0.1)


def raise_oom_score() -> None:
    """Make this process the first that the system kills when it is out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _die_with_parent() -> None:
    """End this process when the study or the fork server ends.

    The kernel's signal covers the fork server, the sentinel of `parent_process` the study.
    """
    study = parent_process()
    if study is not None:
        sentinel = study.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(DEATH_SIGNAL, signal.SIGKILL)


def redirect_output(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
