"""Checkpoints of one process, written so that a valid file exists at any time; see `shards.py` for several
ranks.
"""

import hashlib
import io
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flagformer.lab.train.files import os_error_context, record_fault, sync_folder, write_atomic

CURRENT, PREVIOUS, FRESH = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.new.pt"
MARK = b"flagformer checkpoint 2\n"  # then 32 bytes of SHA-256, then what torch.save wrote
LEADER = len(MARK) + 32
SHAPE = {
    "trial": str, "data": str, "step": int, "seconds": (int, float), "threads": int, "device": str,
    "notes": [str], "model": {}, "optimizer": {}, "rng": [{}], "shards": {},
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A trial after `step` updates. Tensors and plain values only: loading executes nothing from the file."""

    trial: str  # Trial.id
    data: str  # fingerprint of the training data
    step: int
    seconds: float  # training time so far
    threads: int  # of the CPU; the number affects rounding
    device: str
    notes: list[str]  # remarks on the run for the result
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: list[dict[str, Any]]  # of every rank
    shards: dict[str, str]  # the files of model and optimizer of several ranks, with their SHA-256


def rng_state() -> dict[str, Any]:
    """The state of torch's random generators, which dropout and stochastic depth use."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Restore the state of `rng_state`; the CUDA state is skipped if the number of devices has changed."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint.pt`; the previous one becomes `checkpoint.previous.pt`. An OSError (a full disk)
    changes neither.
    """
    write_checkpoint(directory / FRESH, checkpoint)
    promote(directory / FRESH, directory / CURRENT, directory / PREVIOUS)


def promote(fresh: Path, current: Path, previous: Path) -> None:
    """Rename `current` to `previous`, if it exists, and `fresh` to `current`; files or folders."""
    with os_error_context(current):
        if current.exists():
            if previous.is_dir():
                shutil.rmtree(previous, ignore_errors=True)
            current.replace(previous)
        fresh.replace(current)
    sync_folder(current.parent)


def load_checkpoint(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, or None if there is none, and notes on damaged ones."""
    paths = (directory / CURRENT, directory / PREVIOUS)
    _, checkpoint, notes = newest_valid(paths, read_checkpoint, Path.unlink)
    return checkpoint, notes


def newest_valid(
    paths: Iterable[Path], read: Callable[[Path], Checkpoint], remove: Callable[[Path], object]
) -> tuple[Path | None, Checkpoint | None, list[str]]:
    """The first valid one of `paths` with its checkpoint, or None if none exists, and notes on damaged ones.

    If the newest is damaged, it is removed and the previous one is used. ValueError if all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in filter(Path.exists, paths):
        try:
            checkpoint = read(path)
        except ValueError as error:
            damaged[path] = str(error)
            continue
        for broken in damaged:
            remove(broken)
        return path, checkpoint, list(damaged.values())
    if damaged:
        raise ValueError("; ".join(damaged.values()) + "; delete the run directory to start again")
    return None, None, []


def remove_checkpoints(directory: Path) -> None:
    """Free the space of a finished trial."""
    for name in (CURRENT, PREVIOUS, FRESH):
        (directory / name).unlink(missing_ok=True)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file, atomically."""
    # in memory first: torch's writer raises errors without errno and file name on a full disk
    buffer = io.BytesIO()
    buffer.write(bytes(LEADER))
    torch.save(asdict(checkpoint), buffer)
    content = buffer.getbuffer()
    content[:LEADER] = MARK + hashlib.sha256(content[LEADER:]).digest()
    write_atomic(path, content)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file; ValueError if it is damaged."""
    content = path.read_bytes()
    if len(content) < LEADER or not content.startswith(MARK):
        raise ValueError(f"{path} is damaged: it is not a checkpoint of this version")
    if hashlib.sha256(memoryview(content)[LEADER:]).digest() != content[len(MARK) : LEADER]:
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    try:
        saved = torch.load(io.BytesIO(content[LEADER:]), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged: torch cannot read it ({reason})") from None
    fault = record_fault(saved, SHAPE)
    if fault or len(saved) > len(SHAPE):
        raise ValueError(f"{path} is damaged: {fault or 'it has unknown entries'}")
    return Checkpoint(**saved)
