"""Errors on the command line, and the command as a whole."""

from __future__ import annotations

import errno
import os

import pytest
import typer
from typer.testing import CliRunner

from flagformer import FlagError
from flagformer.flags import Finding
from flagformer.lab.cli.errors import clear_errors
from flagformer.lab.cli.main import app


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("`dim` must be positive"), 2, "error: `dim` must be positive"),
        (FlagError([Finding("dim", "`dim` is no"), Finding("heads", "`heads` is no")]), 2, "- `heads` is no"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.yaml"), 2, "error: x.yaml: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "x.yaml"), 2, "error: x.yaml: Permission denied"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.pt"),
            1,
            "error: x.pt: the disk is full: No space left on device",
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1, "error: Input/output error"),
        (RuntimeError("of the library"), 1, "error: RuntimeError: of the library"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt("stopped: 3 of 4"), 130, "stopped: 3 of 4"),
    ],
)
def test_one_screen_and_a_status(
    error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as left, clear_errors():
        raise error
    said = capsys.readouterr().err
    assert left.value.code == status
    assert words in said
    assert "Traceback" not in said


def test_long_messages_are_cut_to_a_screen(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), clear_errors():
        raise ValueError("\n".join(f"mistake {i}" for i in range(200)))
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 25
    assert said[-1] == "... and 177 more lines"


def test_the_traceback_is_optional(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("FLAGFORMER_TRACEBACK", "1")
    with pytest.raises(SystemExit), clear_errors():
        raise ValueError("deep inside")
    assert "Traceback" in capsys.readouterr().err


def test_exits_of_the_command_line_pass() -> None:
    with pytest.raises(typer.Exit), clear_errors():
        raise typer.Exit(3)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), clear_errors():
        raise KeyError("a bug is to be seen as one")


def test_every_command_is_listed() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("study", "train", "generate", "audit", "flags"):
        assert f" {name} " in result.output


def test_version() -> None:
    from flagformer import __version__

    assert CliRunner().invoke(app, ["--version"]).output == f"flagformer {__version__}\n"


@pytest.mark.parametrize("typed", ["nope", "study nope", "study run", "study run x --nope"])
def test_unknown_commands_and_options_exit_with_2(typed: str) -> None:
    result = CliRunner().invoke(app, typed.split())
    assert result.exit_code == 2
    assert "Traceback" not in result.output
