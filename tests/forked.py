"""Processes forked from one server that has imported torch, as an import takes seconds."""

import multiprocessing
import os
import socket
import time
import traceback
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from flagformer.lab.study.run import PRELOAD


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))  # as studies: a process has one server
    return context


def run_ranks(function, folder: Path, *arguments, world: int = 2, timeout: float = 240.0) -> None:
    """Run `function(rank, *arguments)` in `world` processes with the variables that torchrun sets.

    Raises:
        AssertionError: if a process fails, with its traceback.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        server().Process(target=_rank, args=(function, folder, port, rank, world, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    give_up = time.monotonic() + timeout
    while running := [process for process in processes if process.exitcode is None]:
        if time.monotonic() > give_up or any(process.exitcode for process in processes):
            break  # the others would wait for a rank that failed
        wait([process.sentinel for process in running], timeout=1.0)
    texts = [path.read_text() for path in sorted(folder.glob("failed-*.txt"))]
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, "\n".join([f"exit codes {codes}", *texts])


def _rank(function, folder: Path, port: int, rank: int, world: int, arguments: tuple) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        function(rank, *arguments)
    except BaseException:
        (folder / f"failed-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # during shutdown torch's process groups abort about one process in twenty
