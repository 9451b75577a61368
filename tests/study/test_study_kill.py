"""A study killed or stopped at any moment and resumed gives the table of an uninterrupted run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_study import StudyProcess, finished, logged, table, until

from flagformer.lab.study.run import prepare, run_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


def test_kills_and_stops_change_nothing(tiny: Path, tmp_path: Path) -> None:
    """One directory through every way to end a study; finished results stay unchanged each time."""
    out = tmp_path / "out"
    trials = [out / "trials" / run.trial.id for run in prepare(tiny).study.runs]

    study = StudyProcess(tiny, out)
    until(lambda: logged(trials[0]) >= 30)
    study.process.kill()
    study.wait()
    assert_no_process_left(study)
    kept = finished(out)
    assert len(kept) < 4
    assert not (out / "results.json").exists()

    study = StudyProcess(tiny, out)
    worker = until(lambda: next(filter(None, map(study.worker_of, trials)), None))
    os.kill(worker, signal.SIGSTOP)  # otherwise a fast study could end before the signal arrives
    study.process.send_signal(signal.SIGINT)
    os.kill(worker, signal.SIGCONT)
    status, errors = study.wait()
    assert status == 130
    assert f"{len(finished(out))} of 4 trials are finished and kept in {out}" in errors
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors
    assert_no_process_left(study)
    assert finished(out).items() >= kept.items()

    study = StudyProcess(tiny, out)
    worker = until(lambda: study.worker_of(trials[3]))
    os.kill(worker, signal.SIGKILL)
    status, errors = study.wait()
    assert status == 1
    assert "rotary, seed 1: failed: the process was killed by SIGKILL" in errors
    assert "1 of 4 trials failed; run the same command again" in errors
    kept = finished(out)
    assert len(kept) == 3

    study = StudyProcess(tiny, out)
    status, errors = study.wait()
    assert status == 0, errors
    assert "4 trials, 3 finished before, 1 to run" in errors
    assert finished(out).items() >= kept.items()
    assert_no_process_left(study)

    run_study(prepare(tiny), tmp_path / "undisturbed")
    assert table(out) == table(tmp_path / "undisturbed")


def test_sigterm_is_a_clean_stop(tiny: Path, tmp_path: Path) -> None:
    study = StudyProcess(tiny, tmp_path / "out")
    until(lambda: list((tmp_path / "out").glob("trials/*/log.jsonl")))
    study.process.terminate()
    status, errors = study.wait()
    assert status == 130
    assert "run the same command again to resume" in errors
    assert_no_process_left(study)


def assert_no_process_left(study: StudyProcess) -> None:
    """No worker keeps training after its study has ended."""
    until(lambda: not study.family())
