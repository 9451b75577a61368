"""The run directory: its files, and the study that it belongs to.

    DIR/study.yaml          the resolved study, each value with its origin; identifies the study
    DIR/design.json         hypothesis, margin, seeds, tests and power; written once (see `planned.py`)
    DIR/setting.json        versions, machine, data, threads; parameters and FLOPs of every variant
    DIR/variants/ID/        the audit of a variant (see `audits.py`)
    DIR/trials/ID/          one trial (see `lab.train`); output.txt; failure.json of the last attempt
    DIR/results.json        the table
    DIR/report.html         the report; also report.md, table.csv, table.tex and figure-NAME.svg
    DIR/training.lock       locked by the process that runs the study; the system releases the lock at its end

Files are written atomically, so `kill -9` and a full disk leave no partial file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagformer.lab.study.config_errors import StudyFileError, repr_short
from flagformer.lab.study.design import Study
from flagformer.lab.study.file import resolve_study
from flagformer.lab.study.provenance import annotated
from flagformer.lab.study.source import parse_source
from flagformer.lab.train.files import read_record, write_atomic, write_json

STUDY, SETTING, RESULTS, REPORT = "study.yaml", "setting.json", "results.json", "report.html"
DESIGN = "design.json"
OUTPUT, FAILURE, RESULT, LOG = "output.txt", "failure.json", "result.json", "log.jsonl"
_SETTING: dict[str, Any] = {"variants?": {}, "matched?": {}, "machine?": {}, "packages?": {}}
COMMON = ("base", "data", "train", "evaluate", "match")  # shared by all trials of a study
# files that may exist before study.yaml
OWN_FILES = {"training.lock", "trials", "variants", STUDY + ".tmp"}


class ForeignDirectory(ValueError):
    """A run directory that belongs to another study, or to none."""


def trial_directory(directory: Path, trial_id: str) -> Path:
    """The directory of all files of one trial."""
    return directory / "trials" / trial_id


def refuse_foreign(directory: Path, study: Study) -> None:
    """Raise an error unless the directory is new, empty, or belongs to the study.

    Variants and seeds may be added or removed; settings shared by all trials may not change, so that finished
    trials remain part of the study.

    Raises:
        ForeignDirectory: the directory belongs to another study, or has other contents.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ForeignDirectory(f"{directory} is a file; choose another directory with --out")
    if not (directory / STUDY).exists():
        others = sorted(path.name for path in directory.iterdir() if path.name not in OWN_FILES)
        if others:
            contents = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
            raise ForeignDirectory(
                f"{directory} is not empty and contains no study ({contents}); choose another directory with "
                "--out"
            )
        return
    theirs, mine = read_study(directory).resolved(), study.resolved()
    advice = "choose another directory with --out, or delete that one"
    if theirs["name"] != mine["name"]:
        raise ForeignDirectory(
            f"{directory} contains the study `{theirs['name']}`, not `{mine['name']}`; {advice}"
        )
    changed = [line for key in COMMON for line in _changes(key, theirs[key], mine[key])]
    if changed:
        listed = "\n".join(f"  {line}" for line in changed[:8]) + ("\n  ..." if len(changed) > 8 else "")
        raise ForeignDirectory(
            f"{directory} contains the study `{mine['name']}` with other settings:\n{listed}\n{advice}"
        )


def read_study(directory: Path) -> Study:
    """The resolved study of a run directory.

    Raises:
        ForeignDirectory: there is none, or study.yaml is damaged (the message has file and line).
    """
    path = directory / STUDY
    if not path.is_file():
        where = "does not exist" if not directory.exists() else f"contains no study (no {STUDY})"
        raise ForeignDirectory(f"{directory} {where}; give the directory of a study, such as runs/NAME")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ForeignDirectory(
            f"{path} is damaged: it is not UTF-8 text; delete it and run the study again"
        ) from None
    try:
        return resolve_study(parse_source(text, str(path)))
    except StudyFileError as error:
        raise ForeignDirectory(f"{error}\n{path} is damaged; delete it and run the study again") from None


def write_study(directory: Path, study: Study, origins: Mapping[str, str] | None = None) -> None:
    """Save the resolved study, with the origin of each value; the directory then belongs to the study."""
    head = f"# The resolved study `{study.name}`: defaults, overrides and matching filled in.\n"
    write_atomic(directory / STUDY, (head + annotated(study, origins or {})).encode())


def read_setting(directory: Path) -> dict[str, Any]:
    """The contents of setting.json; empty before the first run."""
    path = directory / SETTING
    return read_record(path, _SETTING) if path.exists() else {}


def write_setting(directory: Path, setting: dict[str, Any]) -> None:
    """Save setting.json."""
    write_json(directory / SETTING, setting)


def _changes(key: str, theirs: object, mine: object) -> list[str]:
    """One line for every value that differs: `train.steps`: 300 in the directory, 400 in this study."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        names = dict.fromkeys([*theirs, *mine])
        return [
            line for name in names for line in _changes(f"{key}.{name}", theirs.get(name), mine.get(name))
        ]
    if theirs == mine:
        return []
    return [f"`{key}`: {repr_short(theirs)} in the directory, {repr_short(mine)} in this study"]
