"""Validated reads of trial.json and result.json: the settings and the results of a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagformer.lab.train.files import read_record

_NUMBER = (int, float)
_NUMBER_OR_NULL = (int, float, type(None))
_ENTRY = {
    "split": str,
    "seq_len": int,
    "nats": _NUMBER_OR_NULL,
    "unit?": str,
    "bits_per_byte": _NUMBER_OR_NULL,
    "accuracy": _NUMBER,
    "by_position?": ([_NUMBER_OR_NULL], type(None)),
}
_RESULT: dict[str, Any] = {
    "status": str,
    "steps": int,
    "evaluation": [_ENTRY],
    "cost": {"tokens_per_second": _NUMBER_OR_NULL, "peak_memory_bytes?": (int, type(None))},
    "validation_nats?": _NUMBER_OR_NULL,
    "machine?": {},
    "notes?": [str],
    "start?": {"evaluation": _ENTRY, "graft": {"line?": str}},
}
_WHOLE = {
    **_RESULT,
    "params": int,
    "metric": str,
    "cost": {**_RESULT["cost"], "seconds": _NUMBER},
    "evaluation": [{**_ENTRY, "chance": _NUMBER_OR_NULL}],
    "notes": [str],
}
STATUSES = ("finished", "diverged")
_SETTINGS = {"id": str, "flags?": {}, "data?": {}, "train": {"precision?": str}, "seed?": int}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a trial.json; errors as those of `read_result`."""
    return read_record(path, _SETTINGS)


def read_result(path: Path, *, whole: bool = False) -> dict[str, Any]:
    """Read a result.json; ValueError names the file and the missing or invalid entry.

    Args:
        whole: also require the entries that study reports do not use.
    """
    result = read_record(path, _WHOLE if whole else _RESULT)
    status, measured = result["status"], result["evaluation"]
    if status not in STATUSES:
        fault = f"`status` must be {' or '.join(STATUSES)}, but is {status!r}"
    elif status == "finished" and not measured:
        fault = "`evaluation` of a finished trial must not be empty"
    else:
        return result
    raise ValueError(f"{path} is damaged: {fault}; delete it and run again")
