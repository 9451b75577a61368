"""Killed at any moment and run again, a study ends with the table of an undisturbed run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_study import TINY, StudyProcess, finished, logged, table, until

from flagformer.study.file import load_study

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def undisturbed(study_file: Path) -> Path:
    out = study_file.parent / "undisturbed"
    status, errors = StudyProcess(study_file, out).wait()
    assert status == 0, errors
    return out


def trials(study_file: Path, out: Path) -> list[Path]:
    return [out / "trials" / run.trial.id for run in load_study(study_file)[0].runs]


def assert_nobody_left(study: StudyProcess) -> None:
    until(lambda: not study.family())


def assert_completes_like(study_file: Path, out: Path, undisturbed: Path, kept: dict[str, bytes]) -> None:
    study = StudyProcess(study_file, out)
    status, errors = study.wait()
    assert status == 0, errors
    assert f"{len(kept)} finished before" in errors
    assert table(out) == table(undisturbed)
    after = finished(out)
    assert {name: after[name] for name in kept} == kept
    assert_nobody_left(study)


@pytest.mark.parametrize(
    ("trial", "line"), [(0, 30), (2, 90)], ids=["in the first trial", "in the third trial"]
)
def test_kill_of_the_study(
    trial: int, line: int, study_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    study = StudyProcess(study_file, tmp_path / "out")
    place = trials(study_file, study.out)[trial]
    until(lambda: logged(place) >= line)
    kept = finished(study.out)
    study.process.kill()
    study.process.wait()
    assert_nobody_left(study)
    kept |= finished(study.out)  # a worker may have ended between the two
    assert len(kept) < 4
    assert logged(place) < 200 or place.name in kept
    assert_completes_like(study_file, study.out, undisturbed, kept)


def test_kill_of_a_trial(study_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    study = StudyProcess(study_file, tmp_path / "out")
    place = trials(study_file, study.out)[1]
    until(lambda: logged(place) >= 30)
    worker = until(lambda: study.worker_of(place))
    assert worker != study.process.pid
    os.kill(worker, signal.SIGKILL)
    status, errors = study.wait()
    assert status == 1
    assert "rotary, seed 0: failed: the process was killed by SIGKILL" in errors
    assert "1 of 4 trials failed; run the same command again" in errors
    assert len(finished(study.out)) == 3
    assert_completes_like(study_file, study.out, undisturbed, finished(study.out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_from_outside(number: int, study_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    study = StudyProcess(study_file, tmp_path / "out")
    until(lambda: logged(trials(study_file, study.out)[0]) >= 30)
    study.process.send_signal(number)
    status, errors = study.wait()
    assert status == 130
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert_nobody_left(study)
    assert_completes_like(study_file, study.out, undisturbed, finished(study.out))
