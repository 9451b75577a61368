"""Checkpoints: all that the next step depends on, written so that one good file exists at every moment."""

import io
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flagformer.train.files import naming, sync_folder, write_atomic

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A trial after `step` updates. Tensors and plain values only: loading executes nothing from the file."""

    trial: str  # Trial.id
    data: str  # fingerprint of the data that was trained on
    step: int
    seconds: float  # spent in steps so far
    threads: int  # of the CPU; with another number, sums are rounded differently
    device: str
    notes: list[str]  # what a reader of the result should know of the run so far
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rng: dict[str, Any]


def rng_state() -> dict[str, Any]:
    """The state of torch's generators: dropout and stochastic depth draw from them."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`; a device that is not there any more is skipped."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint.pt`; the one before becomes `checkpoint.previous.pt`. An OSError (a full disk) leaves
    both as they were.
    """
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an error without a number or a name
    torch.save(asdict(checkpoint), buffer)
    fresh = directory / "checkpoint.new.pt"
    write_atomic(fresh, buffer.getbuffer())
    with naming(directory / CURRENT):
        if (directory / CURRENT).exists():
            (directory / CURRENT).replace(directory / PREVIOUS)
        fresh.replace(directory / CURRENT)
    sync_folder(directory)


def load_checkpoint(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, or None before the first, and notes on what was passed over.

    A damaged newest file falls back to the previous one with a note. ValueError names the files when none of
    those there is good.
    """
    notes: list[str] = []
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if path.exists():
            try:
                return _read(path), notes
            except ValueError as error:
                notes.append(str(error))
    if notes:
        raise ValueError("; ".join(notes) + "; delete the run directory to start again")
    return None, notes


def remove_checkpoints(directory: Path) -> None:
    """Free the space of a finished trial."""
    for name in (CURRENT, PREVIOUS, "checkpoint.new.pt"):
        (directory / name).unlink(missing_ok=True)


def _read(path: Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch does not verify the checksums that it writes
        if broken is None:
            return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        reason = f"wrong checksum of {broken}"
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
    raise ValueError(f"{path} is damaged: {reason}")
