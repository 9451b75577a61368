"""A study small enough to run many times, and the command in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from tiny_study import TINY
from typer.testing import CliRunner

from flagformer.lab.cli.study import study as study_app


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of the tiny study."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def command() -> Callable[..., Result]:
    """`flagformer study ...` in this process; standard error is in `.stderr`."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(study_app, [str(argument) for argument in arguments])
