"""The reported memory of a trial: its own, without that of Python and torch."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from tiny_trial import tiny

from flagformer.lab.train import memory
from flagformer.lab.train.memory import CLEAR, STATUS, MemoryRise
from flagformer.lab.train.trial import run_trial

MIB = 2**20
CPU = torch.device("cpu")
on_linux = pytest.mark.skipif(not STATUS.exists() or not CLEAR.exists(), reason="no /proc/self")


def touch(mebibytes: int) -> None:
    """Use new pages and return them; a tensor may take memory that the process has freed and kept."""
    pages = mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(mebibytes):
        pages.write(bytes(MIB))
    pages.close()


@on_linux
def test_a_rise_counts_from_its_start() -> None:
    touch(256)
    rise = MemoryRise(CPU)
    before = rise.peak()
    touch(128)
    found = rise.peak()
    assert before is not None
    assert found is not None
    assert before < 16 * MIB
    assert 112 * MIB < found < 160 * MIB


@on_linux
def test_a_small_trial_does_not_report_the_whole_process(tmp_path: Path) -> None:
    """torch uses 200 MiB and more by itself."""
    trial = tiny()
    run_trial(trial, tmp_path / "first")  # imports for training
    assert run_trial(trial, tmp_path / "second")["cost"]["peak_memory_bytes"] < 64 * MIB


def test_a_system_without_figures_reports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peak", lambda: None)
    assert MemoryRise(CPU).peak() is None
