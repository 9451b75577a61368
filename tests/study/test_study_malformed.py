"""Hundreds of malformed files: one screen that names the file and the line, status 2, no traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from malformed import RUN, STUDY, Malformed, malformed
from typer.testing import CliRunner

from flagformer.lab.cli.errors import MOST_LINES
from flagformer.lab.cli.main import app
from flagformer.lab.cli.runfile import load_run
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.run import prepare

FILES = list(malformed())
WHOLE = re.compile(r"(is a directory|cannot be read|has [\d,]+ bytes)")  # faults of files without lines


def refusal(path: Path, bad: Malformed) -> StudyFileError:
    path.write_bytes(bad.content)
    with pytest.raises(StudyFileError) as caught:
        load_run(path, []) if bad.kind == "run" else prepare(path)
    return caught.value


@pytest.mark.parametrize(("kind", "text"), [("study", STUDY), ("run", RUN)])
def test_the_unmodified_files_are_valid(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(text)
    load_run(path, []) if kind == "run" else prepare(path)


def test_the_number_of_files() -> None:
    assert len(FILES) >= 200
    assert len({(bad.kind, bad.content) for bad in FILES}) == len(FILES)


@pytest.mark.parametrize("bad", FILES, ids=lambda bad: f"{bad.kind}-{bad.fault[:40]}")
def test_a_malformed_file_is_refused_by_file_and_line(bad: Malformed, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    error = refusal(path, bad)
    text = str(error)
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text) <= 16 * 400
    for mistake in error.mistakes:
        assert re.fullmatch(rf"{re.escape(str(path))}(:\d+)?", mistake.location), text
        assert mistake.location != str(path) or WHOLE.search(mistake.message), text
        assert mistake.line <= bad.content.count(b"\n") + 1
    if bad.line is not None:
        assert any(mistake.line == bad.line for mistake in error.mistakes), text


@pytest.mark.parametrize("bad", FILES[::12], ids=lambda bad: f"{bad.kind}-{bad.fault[:40]}")
def test_the_command_reports_the_same_with_status_2(bad: Malformed, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(bad.content)
    words = ["train", str(path)] if bad.kind == "run" else ["study", "run", str(path)]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert str(path) in result.stderr
    assert len(result.stderr.splitlines()) <= MOST_LINES + 1
    assert not (tmp_path / "out").exists()
