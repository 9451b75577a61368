"""Atomic writes, validated reads, and errors that name the file."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def os_error_context(path: Path) -> Iterator[None]:
    """Add the path and advice to an OSError without file name (a full disk in `write`)."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"cannot write: {reason}; finished work is kept, run again to resume",
            str(path),
        ) from error


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write `path` atomically: it has the old or the new content at any time, also after a crash.

    The new content is written to `<path>.tmp` and synced, and the file is renamed. An OSError names `path`,
    which is then unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    with os_error_context(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a partial file would keep the disk full
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync renames in `folder` to the disk, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` atomically as indented JSON; ValueError for NaN and infinity, which JSON forbids."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError with the file and position if it is damaged."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it and run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must be a JSON object; delete it and run again")
    return content


def _short(value: Any) -> str:
    return json.dumps(value, default=repr)[:60]


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not valid JSON")


def read_record(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON object whose entries have the types of `shape`.

    A value has a type or one of a tuple of types; a mapping describes an object, a list of one element a list
    of such elements; a key that ends in `?` is optional. ValueError names the file, the entry and its type.
    """
    content = read_json(path)
    fault = record_fault(content, shape)
    if fault:
        raise ValueError(f"{path} is damaged: {fault}; delete it and run again")
    return content


def record_fault(value: Any, shape: Any, name: str = "") -> str | None:
    """The error of a value of a record, None if it is valid; a tuple may contain one list or mapping."""
    if isinstance(shape, tuple):
        inner = [kind for kind in shape if not isinstance(kind, type)]
        if inner and not (value is None and type(None) in shape):
            return record_fault(value, inner[0], name)
        shape = tuple(kind for kind in shape if isinstance(kind, type))
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{f'`{name}`' if name else 'it'} must be an object, but is {_short(value)}"
        for key, inner in shape.items():
            plain = key.removesuffix("?")
            path = f"{name}.{plain}" if name else plain
            if plain not in value:
                fault = None if key.endswith("?") else f"`{path}` is missing"
            else:
                fault = record_fault(value[plain], inner, path)
            if fault:
                return fault
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"`{name}` must be a list, but is {_short(value)}"
        faults = (record_fault(item, shape[0], f"{name}.{index}") for index, item in enumerate(value))
        return next((fault for fault in faults if fault), None)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return None
    words = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    return f"`{name}` must be of type {words}, but is {_short(value)}"


@contextlib.contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Lock `directory` for this process; ValueError if another process has locked it. The system releases the
    lock when the process ends.
    """
    try:
        import fcntl
    except ImportError:  # no such lock on Windows; the caller must prevent a second process
        yield
        return
    path = directory / "training.lock"
    with os_error_context(path):
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{directory} is in use by another process that trains there; wait for it or stop it"
            ) from error
        yield
