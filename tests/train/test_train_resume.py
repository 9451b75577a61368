"""A run stopped at any moment and resumed equals the uninterrupted run bit by bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_trial import losses, outcome, tiny

from flagformer.lab.train import files
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run_trial(tiny(), directory)


def weights(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "model").iterdir()}


def assert_same_run(directory: Path, result: dict, whole: tuple[Path, dict]) -> None:
    assert losses(directory) == losses(whole[0])
    assert outcome(result) == outcome(whole[1])
    assert weights(directory) == weights(whole[0])


def test_the_same_trial_gives_the_same_bits(whole, tmp_path):
    torch.manual_seed(999)  # earlier work in the process must have no effect
    assert_same_run(tmp_path, run_trial(tiny(), tmp_path), whole)


def test_another_seed_gives_other_losses(whole, tmp_path):
    run_trial(tiny(seed=6), tmp_path)
    assert not {loss for _, loss, _ in losses(tmp_path)} & {loss for _, loss, _ in losses(whole[0])}


def test_validation_does_not_affect_training(whole, tmp_path):
    run_trial(tiny(train={"eval_every": 0}), tmp_path)
    assert [line[:2] for line in losses(tmp_path)] == [line[:2] for line in losses(whole[0])]


@pytest.mark.parametrize("step", range(1, 9))
def test_stopped_at_a_step_and_resumed(whole, tmp_path, step):
    with pytest.raises(Killed):
        run_trial(tiny(), tmp_path, killer(step))
    assert_same_run(tmp_path, run_trial(tiny(), tmp_path), whole)


def test_stopped_many_times(whole, tmp_path):
    for step in (2, 4, 5, 7, 8):
        with pytest.raises(Killed):
            run_trial(tiny(), tmp_path, killer(step))
    assert_same_run(tmp_path, run_trial(tiny(), tmp_path), whole)


def calls_of_the_system(monkeypatch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Count renames and syncs; die at number `die_at`."""
    made: list[str] = []

    def counted(name, real):
        def call(*arguments, **named):
            made.append(name)
            if len(made) == die_at:
                raise Killed
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(Path, "replace", counted("rename", Path.replace))
    monkeypatch.setattr(os, "fsync", counted("sync", os.fsync))
    return made


def test_stopped_at_every_rename_and_sync(whole, tmp_path):
    """Every moment at which the files on disk change their meaning, partly written checkpoints included."""
    with pytest.MonkeyPatch.context() as patch:
        made = calls_of_the_system(patch, die_at=0)
        run_trial(tiny(), tmp_path / "counting")
    assert made.count("rename") >= 9, "3 checkpoints, trial, model, result"
    for moment in range(1, len(made) + 1):
        directory = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            calls_of_the_system(patch, die_at=moment)
            with pytest.raises(Killed):
                run_trial(tiny(), directory)
        assert_same_run(directory, run_trial(tiny(), directory), whole)


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
import tiny_trial
from flagformer.lab.train.trial import run_trial
torch.set_num_threads(int(sys.argv[3]))
run_trial(tiny_trial.tiny(train={"steps": 3000, "checkpoint_every": 40, "eval_every": 0}), Path(sys.argv[1]))
"""


def test_kill_9(tmp_path):
    """A process killed twice while it runs; its log then equals the uninterrupted one."""
    directory = tmp_path / "run"
    here = str(Path(__file__).parent)
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(directory), here, str(torch.get_num_threads())]
        )
        try:
            wanted, give_up = reached + 70, time.monotonic() + 120
            while reached < wanted and process.poll() is None and time.monotonic() < give_up:
                time.sleep(0.01)
                log = directory / "log.jsonl"
                reached = log.read_bytes().count(b"\n") if log.exists() else 0
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
    trial = tiny(train={"steps": 3000, "checkpoint_every": 40, "eval_every": 0})
    for target in (directory, tmp_path / "whole"):
        with pytest.raises(Killed):
            run_trial(trial, target, killer(reached + 40))
    assert losses(directory) == losses(tmp_path / "whole")


def test_a_finished_trial_is_not_trained_again(whole):
    directory, result = whole
    before = (directory / "log.jsonl").stat().st_mtime_ns
    assert run_trial(tiny(), directory, killer(1)) == result
    assert (directory / "log.jsonl").stat().st_mtime_ns == before


def test_a_finished_directory_has_no_temporary_files(whole):
    names = {path.name for path in whole[0].iterdir()}
    assert names == {"trial.json", "log.jsonl", "model", "result.json", "training.lock"}


def test_another_number_of_threads_is_noted(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run_trial(tiny(), tmp_path, killer(5))
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    notes = run_trial(tiny(), tmp_path)["notes"]
    assert len(notes) == 1
    assert f"resumed at step 3 with {threads + 1} threads on cpu, after {threads}" in notes[0]


def test_the_directory_of_another_trial_is_refused(whole):
    with pytest.raises(ValueError, match=r"contains another trial \(it differs in train, seed\)") as caught:
        run_trial(tiny(seed=6, train={"lr": 1e-3}), whole[0])
    assert str(whole[0]) in str(caught.value)


def test_a_directory_in_use_is_refused(tmp_path):
    with files.only_process(tmp_path), pytest.raises(ValueError, match="in use by another process") as caught:
        run_trial(tiny(), tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_other_data_under_the_same_name_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(1, 128)) * 16)
    trial = tiny(data={"source": "file", "path": str(text), "seq_len": 12})
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "run", killer(4))
    text.write_bytes(bytes(range(127, 0, -1)) * 16)
    with pytest.raises(ValueError, match="was trained on another data"):
        run_trial(trial, tmp_path / "run")


def test_micro_batches_change_memory_only(tmp_path):
    """8 sequences in one batch, or 4 x 2, or 8 x 1: the same losses at every step, without dropout."""
    plain = {"attn_dropout": 0.0, "ff_dropout": 0.0}
    curves = []
    for accumulate in (1, 4, 8):
        trial = tiny(flags=plain, train={"batch_size": 8, "accumulate": accumulate, "eval_every": 0})
        run_trial(trial, tmp_path / str(accumulate))
        curves.append([loss for _, loss, _ in losses(tmp_path / str(accumulate))])
    # fp32 sums in another order
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
    assert curves[2] == pytest.approx(curves[0], rel=1e-6)
    assert curves[0][-1] < curves[0][0]
