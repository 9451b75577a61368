"""`flagformer train` under the signals of a terminal and of a batch system, in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_trial import losses

from flagformer.lab.cli.runfile import load_run
from flagformer.lab.train.checkpoint import CURRENT, read_checkpoint
from flagformer.lab.train.stopping import Stopping
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

FILE = """\
name: long
base: {dim: 16, depth: 1, heads: 2, attn_dropout: 0.1}
data: {source: copy, symbols: 8, seq_len: 12}
train: {steps: 1000000, batch_size: 4, warmup: 2, checkpoint_every: 1000000, device: cpu}
threads: 1
"""
PATIENCE = 120  # seconds; a loaded machine imports torch in ten


def stopped_by(number: signal.Signals, file: Path, out: Path, after: int) -> str:
    """Standard error of `flagformer train` when a signal arrives after a number of steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flagformer", "train", str(file), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # received also if the tests run in the background of a shell, which disables SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + PATIENCE
    log = out / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < after:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "training did not reach the step"
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    return errors


def test_a_signal_ends_training_with_a_checkpoint_of_its_step(tmp_path: Path) -> None:
    file, out = tmp_path / "long.yaml", tmp_path / "run"
    file.write_text(FILE)
    torch.set_num_threads(1)  # as in the file: the number decides the rounding
    reached = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        errors = stopped_by(number, file, out, reached + 3)
        step = read_checkpoint(out / CURRENT).step
        assert step >= reached + 3
        assert len(losses(out)) == step
        said = " ".join(errors.split())
        assert f"stopped: step {step:,} of 1,000,000 is saved in {out}; run the same command again" in said
        assert "Traceback" not in errors
        reached = step
    with pytest.raises(Killed):
        run_trial(load_run(file, [])[1], tmp_path / "undisturbed", killer(reached))
    assert losses(out) == losses(tmp_path / "undisturbed")


def test_signals_wait_for_the_end_of_a_step_and_a_second_one_does_not() -> None:
    stopping = Stopping()
    before = signal.getsignal(signal.SIGTERM)
    with stopping.handling():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with stopping.after_steps():
            signal.raise_signal(signal.SIGTERM)
            assert stopping.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_signals_of_torchrun_are_one_request() -> None:
    stopping = Stopping(patient=True)
    with stopping.handling(), stopping.after_steps():
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    assert stopping.requested


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stopping().handling():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
