"""The run directory: what lies where, and whose it is.

    DIR/study.yaml          the resolved study, each value with its origin: which study this directory belongs
                            to
    DIR/setting.json        versions, machine, data, threads; parameters and FLOPs of every variant
    DIR/variants/ID/        what was examined of a variant (see `examine.py`)
    DIR/trials/ID/          one trial (see `flagformer.train`); output.txt; failure.json of the last attempt
    DIR/results.json        the table
    DIR/report.html         the report; also report.md, table.csv, table.tex and figure-NAME.svg
    DIR/training.lock       held by the process that runs the study; the system frees it however that
                            process ends

Every file is written whole or not at all, so `kill -9` and a full disk leave nothing that cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagformer.study.config_errors import StudyFileError, repr_short
from flagformer.study.design import Study
from flagformer.study.file import resolve_study
from flagformer.study.provenance import annotated
from flagformer.study.source import parse_source
from flagformer.train.files import read_record, write_atomic, write_json

STUDY, SETTING, RESULTS, REPORT = "study.yaml", "setting.json", "results.json", "report.html"
OUTPUT, FAILURE, RESULT, LOG = "output.txt", "failure.json", "result.json", "log.jsonl"
_SETTING: dict[str, Any] = {"variants?": {}, "matched?": {}, "machine?": {}, "packages?": {}}
COMMON = ("base", "data", "train", "evaluate", "match")  # what every trial of a study shares
# what can be there before study.yaml is
OWN_FILES = {"training.lock", "trials", "variants", STUDY + ".tmp"}


class ForeignDirectory(ValueError):
    """A run directory that belongs to something else."""


def trial_directory(directory: Path, trial_id: str) -> Path:
    """Where one trial keeps everything it writes."""
    return directory / "trials" / trial_id


def refuse_foreign(directory: Path, study: Study) -> None:
    """Lets the study go on in a directory that is new, empty or its own.

    Variants and seeds may be added or left out; what all trials share may not change, so that nothing
    finished is lost from view.

    Raises:
        Foreign: the directory holds another study, or something that is no study.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ForeignDirectory(f"{directory} is a file; choose another directory with --out")
    if not (directory / STUDY).exists():
        others = sorted(path.name for path in directory.iterdir() if path.name not in OWN_FILES)
        if others:
            held = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
            raise ForeignDirectory(
                f"{directory} is not empty and holds no study ({held}); choose another directory with --out"
            )
        return
    theirs, mine = read_study(directory).resolved(), study.resolved()
    what = "choose another directory with --out, or delete that one"
    if theirs["name"] != mine["name"]:
        raise ForeignDirectory(
            f"{directory} holds the study `{theirs['name']}`, not `{mine['name']}`; {what}"
        )
    changed = [line for key in COMMON for line in _changes(key, theirs[key], mine[key])]
    if changed:
        listed = "\n".join(f"  {line}" for line in changed[:8]) + ("\n  ..." if len(changed) > 8 else "")
        raise ForeignDirectory(
            f"{directory} holds the study `{mine['name']}` with other settings:\n{listed}\n{what}"
        )


def read_study(directory: Path) -> Study:
    """The resolved study of a run directory.

    Raises:
        Foreign: there is none.
        StudyFileError: study.yaml has been damaged; file and line are named.
    """
    path = directory / STUDY
    if not path.is_file():
        where = "is not there" if not directory.exists() else f"holds no study ({STUDY} is not in it)"
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
    """Saves the resolved study, with where each value comes from, and with it the claim on the directory."""
    head = f"# The resolved study `{study.name}`: defaults, overrides and matching filled in.\n"
    write_atomic(directory / STUDY, (head + annotated(study, origins or {})).encode())


def read_setting(directory: Path) -> dict[str, Any]:
    """setting.json, empty before the first run wrote it."""
    path = directory / SETTING
    return read_record(path, _SETTING) if path.exists() else {}


def write_setting(directory: Path, setting: dict[str, Any]) -> None:
    """Saves setting.json."""
    write_json(directory / SETTING, setting)


def _changes(key: str, theirs: object, mine: object) -> list[str]:
    """One line for every value that differs: `train.steps: 300 there, 400 here`."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        names = dict.fromkeys([*theirs, *mine])
        return [
            line for name in names for line in _changes(f"{key}.{name}", theirs.get(name), mine.get(name))
        ]
    if theirs == mine:
        return []
    return [f"`{key}`: {repr_short(theirs)} there, {repr_short(mine)} here"]
